// Package bucket reaches the bucket that files are imported from.
package bucket

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

// Bucket is where files are uploaded and reports appear: the embedded stack's
// folder, or somebody's S3.
type Bucket interface {
	// Put uploads a file.
	Put(ctx context.Context, key, file string) error
	// Get returns false while there is no such object.
	Get(ctx context.Context, key string) ([]byte, bool, error)
}

// Folder is the bucket of the embedded stack: dropping a file is uploading it.
type Folder struct{ Dir string }

// Put implements Bucket.
func (f Folder) Put(_ context.Context, key, file string) error {
	to := filepath.Join(f.Dir, filepath.FromSlash(key))
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

// Get implements Bucket.
func (f Folder) Get(_ context.Context, key string) ([]byte, bool, error) {
	b, err := os.ReadFile(filepath.Join(f.Dir, filepath.FromSlash(key)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	return b, err == nil, err
}

// Remote is a bucket behind AWS_ENDPOINT_URL_S3, reached with the SDK's usual variables.
type Remote struct {
	client *s3.Client
	name   string
}

// NewRemote opens no connection.
func NewRemote(ctx context.Context, endpoint, region, name string) (*Remote, error) {
	cfg, err := awsconfig.LoadDefaultConfig(ctx, awsconfig.WithRegion(region),
		// Many S3 servers refuse the checksums that the SDK adds by default.
		awsconfig.WithRequestChecksumCalculation(aws.RequestChecksumCalculationWhenRequired),
		awsconfig.WithResponseChecksumValidation(aws.ResponseChecksumValidationWhenRequired))
	if err != nil {
		return nil, fmt.Errorf("building the S3 client: %w", err)
	}
	return &Remote{s3.NewFromConfig(cfg, func(o *s3.Options) { o.BaseEndpoint, o.UsePathStyle = &endpoint, true }), name}, nil
}

// Put implements Bucket.
func (r *Remote) Put(ctx context.Context, key, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := r.client.PutObject(ctx, &s3.PutObjectInput{Bucket: &r.name, Key: &key, Body: f}); err != nil {
		return fmt.Errorf("uploading to bucket %s: %w", r.name, err)
	}
	return nil
}

// Get implements Bucket.
func (r *Remote) Get(ctx context.Context, key string) ([]byte, bool, error) {
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
