package s3_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	embedded "github.com/hikyaku/hikyaku/deploy/embedded/s3"
)

func client(endpoint, secret string) *s3.Client {
	return s3.New(s3.Options{
		BaseEndpoint:     aws.String(endpoint),
		Region:           embedded.DefaultRegion,
		Credentials:      credentials.NewStaticCredentialsProvider(embedded.DefaultAccessKeyID, secret, ""),
		RetryMaxAttempts: 1,
	})
}

func get(t *testing.T, cl *s3.Client, in *s3.GetObjectInput) (string, error) {
	t.Helper()
	in.Bucket = aws.String(embedded.DefaultBucket)
	out, err := cl.GetObject(context.Background(), in)
	if err != nil {
		return "", err
	}
	defer out.Body.Close()
	body, err := io.ReadAll(out.Body)
	require.NoError(t, err)
	return string(body), nil
}

func refused(t *testing.T, err error, code string) {
	t.Helper()
	var api smithy.APIError
	require.True(t, errors.As(err, &api), "got %v", err)
	assert.Equal(t, code, api.ErrorCode())
}

// One test, because a process can have one gateway.
func TestS3(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	before, err := os.Getwd()
	require.NoError(t, err)
	s, err := embedded.Open(embedded.Options{Dir: dir, Addr: "127.0.0.1:0"})
	require.NoError(t, err)
	cl := client(s.Endpoint(), embedded.DefaultSecretAccessKey)
	bucket := aws.String(embedded.DefaultBucket)

	put, err := cl.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: aws.String("imports/a.csv"), Body: strings.NewReader("id,name\n1,Ada\n")})
	require.NoError(t, err)
	require.NotEmpty(t, aws.ToString(put.ETag))

	t.Run("uploaded", func(t *testing.T) {
		whole, err := get(t, cl, &s3.GetObjectInput{Key: aws.String("imports/a.csv")})
		require.NoError(t, err)
		assert.Equal(t, "id,name\n1,Ada\n", whole)
		part, err := get(t, cl, &s3.GetObjectInput{Key: aws.String("imports/a.csv"), Range: aws.String("bytes=8-"), IfMatch: put.ETag})
		require.NoError(t, err)
		assert.Equal(t, "1,Ada\n", part)
		_, err = get(t, cl, &s3.GetObjectInput{Key: aws.String("imports/a.csv"), IfMatch: aws.String(`"00000000000000000000000000000000"`)})
		refused(t, err, "PreconditionFailed")
		_, err = get(t, cl, &s3.GetObjectInput{Key: aws.String("imports/none.csv")})
		refused(t, err, "NoSuchKey")
		onDisk, err := os.ReadFile(filepath.Join(s.Folder(), "imports", "a.csv"))
		require.NoError(t, err)
		assert.Equal(t, whole, string(onDisk))
	})

	t.Run("dropped", func(t *testing.T) {
		at := time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)
		file := filepath.Join(s.Folder(), "imports", "b.csv")
		require.NoError(t, os.WriteFile(file, []byte("id\n2\n"), 0o600))
		require.NoError(t, os.Chtimes(file, at, at))
		list, err := cl.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: bucket, Prefix: aws.String("imports/")})
		require.NoError(t, err)
		require.Len(t, list.Contents, 2)
		assert.Equal(t, "imports/a.csv", aws.ToString(list.Contents[0].Key))
		assert.Equal(t, aws.ToString(put.ETag), aws.ToString(list.Contents[0].ETag))
		dropped := list.Contents[1]
		assert.Equal(t, "imports/b.csv", aws.ToString(dropped.Key))
		assert.EqualValues(t, 5, aws.ToInt64(dropped.Size))
		assert.True(t, at.Equal(aws.ToTime(dropped.LastModified)))
		assert.Empty(t, aws.ToString(dropped.ETag), "as the package says")
		body, err := get(t, cl, &s3.GetObjectInput{Key: dropped.Key, Range: aws.String("bytes=3-")})
		require.NoError(t, err)
		assert.Equal(t, "2\n", body)
		_, err = get(t, cl, &s3.GetObjectInput{Key: dropped.Key, IfMatch: aws.String(`"x"`)})
		refused(t, err, "PreconditionFailed")
	})

	t.Run("wrong secret", func(t *testing.T) {
		_, err := client(s.Endpoint(), "guess").ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: bucket})
		refused(t, err, "SignatureDoesNotMatch")
	})

	t.Run("stopped and started", func(t *testing.T) {
		began := time.Now()
		require.NoError(t, s.Close())
		assert.Less(t, time.Since(began), 9*time.Second, "versitygw gives connections that are still open ten seconds")
		now, err := os.Getwd()
		require.NoError(t, err)
		assert.Equal(t, before, now)
		s, err = embedded.Open(embedded.Options{Dir: dir, Addr: "127.0.0.1:0"})
		require.NoError(t, err)
		head, err := client(s.Endpoint(), embedded.DefaultSecretAccessKey).HeadObject(ctx, &s3.HeadObjectInput{Bucket: bucket, Key: aws.String("imports/a.csv")})
		require.NoError(t, err)
		assert.Equal(t, aws.ToString(put.ETag), aws.ToString(head.ETag))
		require.NoError(t, s.Close())
	})

	t.Run("taken port", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		_, err = embedded.Open(embedded.Options{Dir: dir, Addr: l.Addr().String()})
		require.ErrorIs(t, err, syscall.EADDRINUSE)
	})
}
