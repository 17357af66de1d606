package embedded_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sr"

	"github.com/hikyaku/hikyaku/deploy/embedded"
	"github.com/hikyaku/hikyaku/deploy/embedded/outbox"
)

const free = "127.0.0.1:0"

// A process can have one stack with S3 and ClickHouse at a time: one test.
func TestStack(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir := filepath.Join(t.TempDir(), "data")
	options := embedded.Options{
		DataDir: dir, KafkaAddr: free, RegistryAddr: free, ClickHouseAddr: free, S3Addr: free, SMTPAddr: free, OutboxAddr: free,
	}
	s, err := embedded.Start(ctx, options)
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })

	env := s.Env()
	assert.Len(t, env, 9)
	for name, value := range env {
		assert.NotEmpty(t, value, name)
		t.Setenv(name, value) // as a service would be given it
	}

	t.Run("kafka", func(t *testing.T) {
		cl, err := kgo.NewClient(kgo.SeedBrokers(os.Getenv("KAFKA_BROKERS")))
		require.NoError(t, err)
		defer cl.Close()
		assert.NoError(t, cl.Ping(ctx))
	})
	t.Run("schema registry", func(t *testing.T) {
		cl, err := sr.NewClient(sr.URLs(os.Getenv("SCHEMA_REGISTRY_URL")))
		require.NoError(t, err)
		made, err := cl.CreateSchema(ctx, "shop.events-value", sr.Schema{Schema: `"string"`})
		require.NoError(t, err)
		assert.Equal(t, 1, made.ID)
	})
	t.Run("clickhouse", func(t *testing.T) {
		resp, err := http.Get(os.Getenv("CLICKHOUSE_URL") + "/?query=" + url.QueryEscape("SELECT 6 * 7"))
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		assert.Equal(t, "42\n", string(body))
	})
	t.Run("s3", func(t *testing.T) {
		cfg, err := config.LoadDefaultConfig(ctx)
		require.NoError(t, err)
		cl := s3.NewFromConfig(cfg) // nothing but the environment
		require.NoError(t, os.WriteFile(filepath.Join(s.S3Folder, "dropped.csv"), []byte("id\n"), 0o644))
		list, err := cl.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: aws.String(os.Getenv("S3_BUCKET"))})
		require.NoError(t, err)
		require.Len(t, list.Contents, 1)
		assert.Equal(t, "dropped.csv", aws.ToString(list.Contents[0].Key))
	})
	t.Run("outbox", func(t *testing.T) {
		c, err := smtp.Dial(os.Getenv("SMTP_ADDR"))
		require.NoError(t, err)
		defer c.Close()
		require.NoError(t, c.SendMail("news@example.test", []string{"ada@example.test"}, strings.NewReader("Subject: Hello\r\n\r\n")))
		var to []string
		require.NoError(t, outbox.ReadIndex(s.OutboxDir, func(e outbox.Entry) error {
			to = append(to, e.To)
			return nil
		}))
		assert.Equal(t, []string{"ada@example.test"}, to)
		resp, err := http.Get(s.OutboxURL)
		require.NoError(t, err)
		defer resp.Body.Close()
		page, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		assert.Contains(t, string(page), "ada@example.test")
	})

	_, err = embedded.Start(ctx, options)
	var locked *embedded.LockedError
	require.ErrorAs(t, err, &locked)
	assert.Equal(t, dir, locked.Dir)

	require.NoError(t, s.Close())
	select {
	case err := <-s.Failed():
		t.Errorf("a part failed: %v", err)
	default:
	}
	for _, addr := range []string{s.KafkaAddr, s.SMTPAddr, strings.TrimPrefix(s.OutboxURL, "http://"), strings.TrimPrefix(s.S3Endpoint, "http://")} {
		_, err := net.Dial("tcp", addr)
		assert.Error(t, err, addr)
	}
	unlock, err := embedded.Lock(dir)
	require.NoError(t, err)
	unlock()
}
