package importer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"

	"github.com/hikyaku/hikyaku/services/importer/internal/export"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/importfile"
)

// metaImport is the user metadata on what we write: the import's id. It tells our files
// also under other names.
const metaImport = "hikyaku-import"

// object is one object as a listing shows it.
type object struct {
	bucket       string
	key          string
	etag         string // with its quotes; empty for a file dropped into a folder
	sizeBytes    int64
	lastModified time.Time
	versionID    string // empty where the bucket has no versions, and until head
}

// list calls yield for every object under a prefix that could be imported.
func (s *Service) list(ctx context.Context, prefix string, yield func(object)) error {
	pages := s3.NewListObjectsV2Paginator(s.s3, &s3.ListObjectsV2Input{Bucket: &s.cfg.S3.Bucket, Prefix: &prefix, EncodingType: types.EncodingTypeUrl})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return fault.Transient(fmt.Errorf("listing s3://%s/%s: %w", s.cfg.S3.Bucket, prefix, err))
		}
		for _, c := range page.Contents {
			key := listedKey(c.Key, page.EncodingType)
			if importable(key) {
				yield(object{
					bucket: s.cfg.S3.Bucket, key: key, etag: aws.ToString(c.ETag),
					sizeBytes: aws.ToInt64(c.Size), lastModified: micros(aws.ToTime(c.LastModified)),
				})
			}
		}
	}
	return nil
}

// listedKey is the key that a listing shows. A key may have characters that XML
// cannot: one such object would make the whole listing unreadable, if its keys
// were not asked for as URLs have them. Not every server does so.
func listedKey(shown *string, encoding types.EncodingType) string {
	key := aws.ToString(shown)
	if encoding == types.EncodingTypeUrl {
		if decoded, err := url.QueryUnescape(key); err == nil {
			return decoded
		}
	}
	return key
}

// importable says whether a key can be that of a file to import: not one of ours,
// and nothing that consoles make to show an empty folder.
func importable(key string) bool {
	return !strings.HasSuffix(key, importfile.RejectsSuffix) && !strings.HasSuffix(key, importfile.ReportSuffix) && !strings.HasSuffix(key, "/")
}

// head asks for what a listing does not tell: the version, and whether the
// object is one of ours. It says false for an object that is not to be
// imported, or not the one that was listed.
func (s *Service) head(ctx context.Context, o *object) (bool, error) {
	in := &s3.HeadObjectInput{Bucket: &o.bucket, Key: &o.key}
	if o.versionID != "" {
		in.VersionId = &o.versionID
	}
	out, err := s.s3.HeadObject(ctx, in)
	switch {
	case status(err) == http.StatusNotFound:
		return false, nil
	case err != nil:
		return false, fault.Transient(fmt.Errorf("looking at %s: %w", o, err))
	case out.Metadata[metaImport] != "" || out.Metadata[export.Meta] != "":
		return false, nil
	case aws.ToString(out.ETag) != o.etag || !o.is(out.ContentLength, out.LastModified):
		return false, nil // the next listing shows the new one
	}
	// A suspended bucket calls its versions null, which is none.
	if v := aws.ToString(out.VersionId); v != "null" {
		o.versionID = v
	}
	return true, nil
}

// is compares with what an answer says. HTTP has whole seconds.
func (o object) is(size *int64, lastModified *time.Time) bool {
	return aws.ToInt64(size) == o.sizeBytes && aws.ToTime(lastModified).Unix() == o.lastModified.Unix()
}

// String names the object for errors and logs.
func (o object) String() string { return "s3://" + o.bucket + "/" + o.key }

var (
	errChanged = errors.New("the object was changed while it was read")
	errGone    = errors.New("the object was removed before it was read to the end")
)

// How long an import that holds a place waits for the server.
const (
	readPatience = 30 * time.Second // until it lets go, to be tried again later
	idleTimeout  = 10 * time.Second // between two reads of a body, where the SDK retries nothing
)

// objectReader reads one version of an object from a byte on, over as many
// requests as it takes. Errors: errChanged, errGone; Transient when the server
// is away for longer than readPatience; the context's.
type objectReader struct {
	ctx     context.Context
	service *Service
	object  object
	at, to  int64 // the next byte, and the first that is not asked for

	body   io.ReadCloser
	cancel context.CancelFunc
	idle   *time.Timer
	reads  int // calls of Read, so that a caller can tell whether it waited
}

func (s *Service) open(ctx context.Context, o object) *objectReader {
	return &objectReader{ctx: ctx, service: s, object: o, to: o.sizeBytes}
}

// Go moves to a byte of the object.
func (r *objectReader) Go(to int64) {
	r.Close()
	r.at = to
}

// At is the next byte; with ReadAt it is how much was read.
func (r *objectReader) At() int64 { return r.at }

// Size is the object's, in bytes.
func (r *objectReader) Size() int64 { return r.object.sizeBytes }

// ReadAt implements io.ReaderAt, with a request of its own for each call. It is for
// formats that begin elsewhere than at the beginning; whoever uses it calls end
// when all is read.
func (r *objectReader) ReadAt(p []byte, at int64) (int, error) {
	if at < 0 || at >= r.object.sizeBytes {
		return 0, io.EOF
	}
	part := r.service.open(r.ctx, r.object)
	defer part.Close()
	part.at, part.to = at, min(at+int64(len(p)), r.object.sizeBytes)
	n, err := io.ReadFull(part, p[:part.to-at])
	r.reads += part.reads
	r.at += int64(n) // read so far, in whatever order
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// Read implements io.Reader.
func (r *objectReader) Read(p []byte) (int, error) {
	r.reads++
	var deadline time.Time
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		n, err := r.read(p)
		if err == nil || err == io.EOF || errors.Is(err, errChanged) || errors.Is(err, errGone) {
			return n, err
		}
		r.Close()
		if r.ctx.Err() != nil {
			return 0, r.ctx.Err()
		}
		r.service.tel.Health.Set("s3", err)
		if deadline.IsZero() {
			deadline = time.Now().Add(readPatience)
		}
		if time.Now().After(deadline) {
			return 0, fault.Transient(fmt.Errorf("reading %s at byte %d: %w", r.object, r.at, err))
		}
		select {
		case <-time.After(pause):
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		}
	}
}

func (r *objectReader) read(p []byte) (int, error) {
	if r.at >= r.to {
		return 0, r.end()
	}
	if r.body == nil {
		if err := r.request(); err != nil {
			return 0, err
		}
		r.service.tel.Health.Set("s3", nil)
	}
	r.idle.Reset(idleTimeout)
	n, err := r.body.Read(p[:min(int64(len(p)), r.to-r.at)])
	r.idle.Stop()
	r.at += int64(n)
	switch {
	case n > 0:
		// An error that came with bytes comes again without.
		return n, nil
	case err == io.EOF:
		return 0, io.ErrUnexpectedEOF // the size says there is more
	}
	return 0, err
}

// request asks for the rest of the very version that was announced.
func (r *objectReader) request() error {
	ctx, cancel := context.WithCancel(r.ctx)
	in := &s3.GetObjectInput{Bucket: &r.object.bucket, Key: &r.object.key, Range: aws.String(fmt.Sprintf("bytes=%d-%d", r.at, r.to-1))}
	switch {
	case r.object.versionID != "":
		in.VersionId = &r.object.versionID
	case r.object.etag != "":
		in.IfMatch = &r.object.etag
	}
	out, err := r.service.s3.GetObject(ctx, in)
	if err != nil {
		cancel()
		switch status(err) {
		case http.StatusPreconditionFailed, http.StatusRequestedRangeNotSatisfiable:
			return errChanged
		case http.StatusNotFound:
			return errGone
		}
		return err
	}
	// A dropped file has no ETag to ask for; its size and time are looked at
	// instead, here and at the end.
	// A version is what it is, but versitygw shows another time for it once there is
	// a newer one.
	if aws.ToInt64(out.ContentLength) != r.to-r.at || r.object.versionID == "" && !r.object.is(&r.object.sizeBytes, out.LastModified) {
		out.Body.Close()
		cancel()
		return errChanged
	}
	r.body, r.cancel = out.Body, cancel
	r.idle = time.AfterFunc(idleTimeout, cancel)
	return nil
}

// end is reached with the last byte. What cannot be pinned is looked at once
// more, before anybody is told that it was read.
func (r *objectReader) end() error {
	if r.object.versionID != "" || r.object.etag != "" {
		return io.EOF
	}
	out, err := r.service.s3.HeadObject(r.ctx, &s3.HeadObjectInput{Bucket: &r.object.bucket, Key: &r.object.key})
	switch {
	case status(err) == http.StatusNotFound:
		return io.EOF // taken away after it was read
	case err != nil:
		return err
	case !r.object.is(out.ContentLength, out.LastModified):
		return errChanged
	}
	return io.EOF
}

// Close ends the request.
func (r *objectReader) Close() {
	if r.body != nil {
		r.idle.Stop()
		r.cancel()
		r.body.Close()
		r.body = nil
	}
}

// status is the HTTP status of an answer that was an error, else 0.
func status(err error) int {
	var response *awshttp.ResponseError
	if errors.As(err, &response) {
		return response.HTTPStatusCode()
	}
	var api smithy.APIError
	if errors.As(err, &api) {
		switch api.ErrorCode() {
		case "NoSuchKey", "NotFound":
			return http.StatusNotFound
		case "AccessDenied":
			return http.StatusForbidden
		}
	}
	return 0
}
