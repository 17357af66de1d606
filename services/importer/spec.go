package importer

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/importfile/pinpoint"
)

// inForce is an import spec that takes objects.
type inForce struct {
	id      string
	version int64
	prefix  string
	except  []string // prefixes below its own that others have
}

// specs are the import specs in force, last the one that is built in.
func (s *Service) specs() []inForce {
	var all []inForce
	builtIn := inForce{id: pinpoint.SpecID, version: pinpoint.Version, prefix: s.cfg.pinpointPrefix()}
	for _, v := range s.definitions.All(definition.KindImportSpec) {
		spec, err := s.spec(v)
		if err != nil {
			continue
		}
		all = append(all, inForce{id: v.ID, version: v.Number, prefix: spec.Source.Prefix})
		if strings.HasPrefix(spec.Source.Prefix, builtIn.prefix) {
			builtIn.except = append(builtIn.except, spec.Source.Prefix)
		}
	}
	if builtIn.prefix != "" {
		all = append(all, builtIn)
	}
	return all
}

func (f *inForce) takes(key string) bool {
	return strings.HasPrefix(key, f.prefix) && !slices.ContainsFunc(f.except, func(prefix string) bool { return strings.HasPrefix(key, prefix) })
}

// specOf is the spec of a job. The built-in one makes nothing of an import but its segment,
// which is on record once it is begun.
func (s *Service) specOf(ctx context.Context, j job) (*definition.ImportSpec, error) {
	if j.specID == pinpoint.SpecID {
		switch {
		case j.specVersion != pinpoint.Version:
			return nil, fault.Transient(fmt.Errorf("the built-in import spec %s has version %d here, not %d", j.specID, pinpoint.Version, j.specVersion))
		case j.begun != nil:
			return pinpoint.Spec(j.begun.SegmentID), nil
		}
		return pinpoint.Spec(pinpoint.Segment(strings.TrimPrefix(j.object.key, s.cfg.pinpointPrefix()))), nil
	}
	version, err := s.definitions.WaitFor(ctx, definition.KindImportSpec, j.specID, j.specVersion)
	if fault.ClassOf(err) == fault.ClassPoison {
		return nil, fault.Transient(err) // this import waits, others go on
	}
	if err != nil {
		return nil, errStopped
	}
	spec, err := s.spec(version)
	if err != nil {
		return nil, fault.Transient(err)
	}
	return spec, nil
}

// spec decodes a version once said to be in force. What does not decode was
// written by a newer program; the others go on.
func (s *Service) spec(v definitions.Version) (*definition.ImportSpec, error) {
	d, err := definition.Decode(v.Kind, v.Body)
	if err == nil {
		if spec, ok := d.(*definition.ImportSpec); ok {
			return spec, nil
		}
		err = fmt.Errorf("%s is not an import spec", v.Kind)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if name := fmt.Sprintf("%s@%d", v.ID, v.Number); !s.refused[name] {
		s.refused[name] = true
		s.log.Error("import spec is not understood and left alone", "spec_id", v.ID, "spec_version", v.Number, "error", err)
	}
	return nil, err
}
