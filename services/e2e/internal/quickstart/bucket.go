package quickstart

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// bucket is where files are uploaded and reports appear: the embedded stack's
// folder, or somebody's S3.
type bucket interface {
	put(ctx context.Context, key, file string) error
	// get returns false while there is no such object.
	get(ctx context.Context, key string) ([]byte, bool, error)
}

// folder is the bucket of the embedded stack: dropping a file is uploading it.
type folder struct{ dir string }

func (f folder) put(_ context.Context, key, file string) error {
	to := filepath.Join(f.dir, filepath.FromSlash(key))
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	// As a file manager does it; the importer waits until a file stops changing.
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func (f folder) get(_ context.Context, key string) ([]byte, bool, error) {
	b, err := os.ReadFile(filepath.Join(f.dir, filepath.FromSlash(key)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	return b, err == nil, err
}

// remote is a bucket behind AWS_ENDPOINT_URL_S3, reached with the SDK's usual variables.
type remote struct {
	client *s3.Client
	name   string
}

func newRemote(ctx context.Context, endpoint, region, name string) (*remote, error) {
	cfg, err := awsconfig.LoadDefaultConfig(ctx, awsconfig.WithRegion(region),
		// Many S3 servers refuse the checksums that the SDK adds by default.
		awsconfig.WithRequestChecksumCalculation(aws.RequestChecksumCalculationWhenRequired),
		awsconfig.WithResponseChecksumValidation(aws.ResponseChecksumValidationWhenRequired))
	if err != nil {
		return nil, fmt.Errorf("building the S3 client: %w", err)
	}
	return &remote{s3.NewFromConfig(cfg, func(o *s3.Options) { o.BaseEndpoint, o.UsePathStyle = &endpoint, true }), name}, nil
}

func (r *remote) put(ctx context.Context, key, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := r.client.PutObject(ctx, &s3.PutObjectInput{Bucket: &r.name, Key: &key, Body: f}); err != nil {
		return missing("uploading to bucket %s: %w", r.name, err)
	}
	return nil
}

func (r *remote) get(ctx context.Context, key string) ([]byte, bool, error) {
	out, err := r.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &r.name, Key: &key})
	var none *types.NoSuchKey
	if errors.As(err, &none) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	defer out.Body.Close()
	b, err := io.ReadAll(out.Body)
	return b, err == nil, err
}
