package kafka

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/twmb/franz-go/pkg/sr"
	"golang.org/x/sync/errgroup"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// writer is a schema that some record was written with.
type writer struct{ schema string }

// resolveSchemas finds the ids of the schemas of all topics, by registering them
// or, with REGISTER_SCHEMAS off, by looking them up.
func (c *Cluster) resolveSchemas(ctx context.Context) error {
	rows := topic.Catalogue()
	ids := make([]int, len(rows))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i, t := range rows {
		group.Go(func() (err error) {
			ids[i], err = c.schemaID(ctx, t)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	c.homes = make(map[topic.Name]home, len(rows))
	for i, t := range rows {
		c.homes[t.Name] = home{kafkaTopic: t.Name.In(c.cfg.Namespace), partitions: t.PartitionCount(c.p), record: t.Record, schemaID: ids[i]}
	}
	return nil
}

func (c *Cluster) schemaID(ctx context.Context, t topic.Topic) (int, error) {
	id, text, err := SchemaID(ctx, c.registry, t, c.cfg.Namespace, c.cfg.RegisterSchemas)
	if err != nil {
		return 0, err
	}
	c.writers.Store(id, &writer{text})
	return id, nil
}

// SchemaID registers, or only looks up, the schema of a topic's values and returns
// its id and text. A registry that is away, or does not know the schema yet, is
// Transient; one that refuses it is Fatal.
func SchemaID(ctx context.Context, registry *sr.Client, t topic.Topic, namespace string, register bool) (int, string, error) {
	rec, ok := event.New(t.Record)
	if !ok {
		return 0, "", fault.Fatal(fmt.Errorf("topic %s holds %s, which is no record of schemas/event", t.Name, t.Record))
	}
	subject, text := t.Name.Subject(namespace), rec.Schema()
	schema := sr.Schema{Schema: text, Type: sr.TypeAvro}
	if register {
		id, err := registry.RegisterSchema(ctx, subject, schema, -1, -1)
		if err != nil {
			return 0, "", registryError(fmt.Errorf("registering the schema of %s: %w", subject, err))
		}
		return id, text, nil
	}
	found, err := registry.LookupSchema(ctx, subject, schema)
	var answer *sr.ResponseError
	if errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound {
		return 0, "", fault.Transient(fmt.Errorf("the registry does not know the schema of %s; provision registers it: %w", subject, err))
	}
	if err != nil {
		return 0, "", registryError(fmt.Errorf("looking up the schema of %s: %w", subject, err))
	}
	return found.ID, text, nil
}

// registryError tells a registry that says no from one that is away.
func registryError(err error) error {
	var answer *sr.ResponseError
	if errors.As(err, &answer) {
		switch code := answer.StatusCode; {
		case code == http.StatusTooManyRequests, code == http.StatusRequestTimeout:
		case code >= 400 && code < 500:
			return fault.Fatal(err)
		}
	}
	return fault.Transient(err)
}

// writerOf returns the schema with this id, asking the registry once.
func (c *Cluster) writerOf(id int) (*writer, error) {
	if w, ok := c.writers.Load(id); ok {
		return w.(*writer), nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	schema, err := c.registry.SchemaByID(ctx, id)
	if err != nil {
		// An id that is not known may be known to the registry's other replica,
		// or after its restore. Calling that poison would park topic after topic.
		return nil, fault.Transient(fmt.Errorf("resolving schema id %d: %w", id, err))
	}
	w := &writer{schema.Schema}
	c.writers.Store(id, w)
	return w, nil
}
