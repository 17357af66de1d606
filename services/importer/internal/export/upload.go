package export

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// partBytes is the size of a part: at least 5 MiB. A file has 10,000 parts at most.
const partBytes = 8 << 20

// Meta is the user metadata on what an export writes, its id; so the importer leaves it alone.
const Meta = "hikyaku-export"

// bucket is where an export lies.
type bucket struct {
	s3   *s3.Client
	name string
	id   string // of the export
}

// object is a file being uploaded: at once if it is small, else in parts, one of
// them under way while the next is filled. It is there when Close returns, and not before.
type object struct {
	ctx   context.Context
	in    bucket
	key   string
	bytes int64 // taken
	hash  hash.Hash

	part     []byte
	spare    []byte
	number   int32 // of parts sent
	uploadID *string
	parts    []types.CompletedPart
	sent     chan sent // the part under way; nil if none is
}

// sent is a part that is there, or could not be uploaded.
type sent struct {
	memory []byte
	err    error
}

func (b bucket) create(ctx context.Context, key string) *object {
	return &object{ctx: ctx, in: b, key: key, hash: sha256.New()}
}

func (o *object) Write(p []byte) (int, error) {
	o.hash.Write(p)
	o.bytes += int64(len(p))
	n := len(p)
	for len(p) > 0 {
		if o.part == nil {
			o.part, o.spare = o.spare, nil
			if o.part == nil {
				o.part = make([]byte, 0, partBytes)
			}
		}
		room := min(len(p), partBytes-len(o.part))
		o.part = append(o.part, p[:room]...)
		p = p[room:]
		if len(o.part) == partBytes {
			if err := o.send(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

// send begins to upload the part in hand, when the one before is there.
func (o *object) send() error {
	if o.uploadID == nil {
		out, err := o.in.s3.CreateMultipartUpload(o.ctx, &s3.CreateMultipartUploadInput{
			Bucket: &o.in.name, Key: &o.key, Metadata: map[string]string{Meta: o.in.id},
		})
		if err != nil {
			return err
		}
		o.uploadID = out.UploadId
	}
	if err := o.wait(); err != nil {
		return err
	}
	o.number++
	number, part, done := o.number, o.part, make(chan sent, 1)
	o.part, o.sent = nil, done
	o.parts = append(o.parts, types.CompletedPart{PartNumber: &number})
	into := &o.parts[len(o.parts)-1].ETag
	go func() {
		out, err := o.in.s3.UploadPart(o.ctx, &s3.UploadPartInput{
			Bucket: &o.in.name, Key: &o.key, UploadId: o.uploadID, PartNumber: &number, Body: bytes.NewReader(part),
		})
		if err == nil {
			*into = out.ETag
		}
		done <- sent{part[:0], err}
	}()
	return nil
}

func (o *object) wait() error {
	if o.sent == nil {
		return nil
	}
	done := <-o.sent
	o.sent, o.spare = nil, done.memory
	return done.err
}

// Close makes the object be there.
func (o *object) Close() error {
	if o.uploadID == nil {
		_, err := o.in.s3.PutObject(o.ctx, &s3.PutObjectInput{
			Bucket: &o.in.name, Key: &o.key, Body: bytes.NewReader(o.part), Metadata: map[string]string{Meta: o.in.id},
		})
		return err
	}
	if len(o.part) > 0 {
		if err := o.send(); err != nil {
			return err
		}
	}
	if err := o.wait(); err != nil {
		return err
	}
	_, err := o.in.s3.CompleteMultipartUpload(o.ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &o.in.name, Key: &o.key, UploadId: o.uploadID, MultipartUpload: &types.CompletedMultipartUpload{Parts: o.parts},
	})
	return err
}

// abortPatience is how long it may take to take back an upload that is given up.
const abortPatience = 5 * time.Second

// Abort takes back what is uploaded. What it cannot, the next attempt does.
func (o *object) Abort() {
	_ = o.wait()
	if o.uploadID == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(o.ctx), abortPatience)
	defer cancel()
	_, _ = o.in.s3.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &o.in.name, Key: &o.key, UploadId: o.uploadID}, func(o *s3.Options) { o.RetryMaxAttempts = 1 })
}

func (o *object) sha256() string { return hex.EncodeToString(o.hash.Sum(nil)) }

// clear aborts the uploads under a folder that nobody finished, and removes the objects
// that are not to be kept.
func (b bucket) clear(ctx context.Context, folder string, keep map[string]bool) error {
	uploads := s3.NewListMultipartUploadsPaginator(b.s3, &s3.ListMultipartUploadsInput{Bucket: &b.name, Prefix: &folder})
	for uploads.HasMorePages() {
		page, err := uploads.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("listing uploads under %s: %w", folder, err)
		}
		for _, u := range page.Uploads {
			_, err := b.s3.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &b.name, Key: u.Key, UploadId: u.UploadId})
			var gone *types.NoSuchUpload
			if err != nil && !errors.As(err, &gone) {
				return fmt.Errorf("aborting the upload of %s: %w", aws.ToString(u.Key), err)
			}
		}
	}
	objects := s3.NewListObjectsV2Paginator(b.s3, &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: &folder})
	for objects.HasMorePages() {
		page, err := objects.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("listing %s: %w", folder, err)
		}
		for _, o := range page.Contents {
			if keep[aws.ToString(o.Key)] {
				continue
			}
			if _, err := b.s3.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.name, Key: o.Key}); err != nil {
				return fmt.Errorf("removing %s: %w", aws.ToString(o.Key), err)
			}
		}
	}
	return nil
}

// put writes a small object at once.
func (b bucket) put(ctx context.Context, key, contentType string, body []byte) error {
	_, err := b.s3.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &b.name, Key: &key, Body: bytes.NewReader(body), ContentType: &contentType, Metadata: map[string]string{Meta: b.id},
	})
	if err != nil {
		return fmt.Errorf("writing %s: %w", key, err)
	}
	return nil
}
