package importer

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/hikyaku/hikyaku/services/importer/internal/announce"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// Beside the listing, objects are found by being announced: by a queue, and by HTTP.
const (
	announcers  = 2
	sourceQueue = "sqs"
	sourceHTTP  = "http"
)

// What became of a message.
const (
	resultSettled   = "settled"
	resultGivenBack = "given_back"
	resultRefused   = "refused"
)

// maxInHand bounds the messages of each kind that wait to be settled. As many
// imports can be begun.
const maxInHand = maxOpen

// givenBackAfter is how long a message given back stays out of reach: the queue may not
// have noticed yet that nobody waits for the answer to the last ReceiveMessage any more,
// and would give it to nobody until its visibility timeout.
const givenBackAfter = time.Second

// maxLook is the longest pause between two looks at an object that waits for a place.
const maxLook = 20 * time.Second

// announcements turns what is announced into imports.
type announcements struct {
	*Service
	start func(job) bool // says whether there was room
}

// listen starts what hears of objects, each as one of the group, once all that has
// been imported is known.
func (s *Service) listen(ctx context.Context, group *errgroup.Group, known <-chan struct{}, start func(job) bool) {
	a := &announcements{s, start}
	after := func(do func(context.Context) error) {
		group.Go(func() error {
			select {
			case <-known:
				return do(ctx)
			case <-ctx.Done():
				return nil
			}
		})
	}
	if s.sqs != nil {
		after(a.receive)
	}
	if s.cfg.Announce.Listen != "" {
		after(a.serve)
	}
}

// settle waits until nothing is left to decide about the objects: until each of
// them, under every spec that wants it, is on record as an import of whichever instance,
// or gone, or none to import. The error is ctx's, or that of a table that has
// ended: what is away is waited for.
func (a *announcements) settle(ctx context.Context, objects []announce.Object) error {
	// What was written before the object was put, or before another heard of it, is known
	// from here on.
	if err := errors.Join(a.definitions.CaughtUp(ctx), a.progress.table.CaughtUp(ctx)); err != nil {
		return err
	}
	for _, o := range objects {
		if err := a.settleOne(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

func (a *announcements) settleOne(ctx context.Context, o announce.Object) error {
	for pause := a.timing.look; ; pause = min(2*pause, maxLook) {
		jobs, err := a.look(ctx, o)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			a.tel.Health.Set("s3", err)
			sleep(ctx, pause)
		case a.onRecord(ctx, jobs, pause):
			return nil
		}
	}
}

// onRecord starts the jobs as there is room, and says whether all of them, or none,
// are on record before the pause is over.
func (a *announcements) onRecord(ctx context.Context, jobs []job, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		changed := a.progress.changed()
		left := false
		for _, j := range jobs {
			if a.progress.wanted(j.object, j.specID, j.specVersion) {
				left = true
				if a.mayTake(j) {
					a.start(j) // without room, again when something has changed
				}
			}
		}
		if !left {
			return true
		}
		select {
		case <-changed:
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// look returns the imports that an announced object makes: none if it is gone, or
// nothing to import, or imported already.
func (s *Service) look(ctx context.Context, at announce.Object) ([]job, error) {
	if at.Bucket != s.cfg.S3.Bucket || !importable(at.Key) {
		return nil, nil
	}
	var jobs []job
	for _, spec := range s.specs() {
		if spec.takes(at.Key) {
			jobs = append(jobs, job{specID: spec.id, specVersion: spec.version})
		}
	}
	if len(jobs) == 0 {
		return nil, nil
	}
	o, err := s.find(ctx, at)
	// What has no ETag was dropped into a folder; the listing takes its time with it.
	if err != nil || o == nil || o.etag == "" {
		return nil, err
	}
	var wanted []job
	for _, j := range jobs {
		if s.progress.wanted(*o, j.specID, j.specVersion) {
			j.source, j.object = sourceOf(*o, j.specID), *o
			wanted = append(wanted, j)
		}
	}
	if len(wanted) == 0 {
		return nil, nil
	}
	// Our own files under other names. What has replaced the object is announced too.
	headed := *o
	if ok, err := s.head(ctx, &headed); err != nil || !ok {
		return nil, err
	}
	return wanted, nil
}

// find returns an object as a listing shows it, and not as a request for itself does,
// so that both make the same import of it: a listing may tell the time to the
// millisecond. With a version it is that one, else the newest; nil if it is gone.
func (s *Service) find(ctx context.Context, at announce.Object) (*object, error) {
	if at.VersionID == "" {
		// Of all the keys that begin with this one it is the first.
		page, err := s.s3.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &at.Bucket, Prefix: &at.Key, EncodingType: s3types.EncodingTypeUrl})
		if err != nil {
			return nil, fault.Transient(fmt.Errorf("looking for s3://%s/%s: %w", at.Bucket, at.Key, err))
		}
		for _, c := range page.Contents {
			if listedKey(c.Key, page.EncodingType) == at.Key {
				return &object{
					bucket: at.Bucket, key: at.Key, etag: aws.ToString(c.ETag),
					sizeBytes: aws.ToInt64(c.Size), lastModified: micros(aws.ToTime(c.LastModified)),
				}, nil
			}
		}
		return nil, nil
	}
	in := &s3.ListObjectVersionsInput{Bucket: &at.Bucket, Prefix: &at.Key, EncodingType: s3types.EncodingTypeUrl}
	for {
		page, err := s.s3.ListObjectVersions(ctx, in)
		if err != nil {
			return nil, fault.Transient(fmt.Errorf("looking for version %s of s3://%s/%s: %w", at.VersionID, at.Bucket, at.Key, err))
		}
		for _, v := range page.Versions {
			switch {
			case listedKey(v.Key, page.EncodingType) != at.Key:
				return nil, nil
			case aws.ToString(v.VersionId) == at.VersionID:
				return &object{
					bucket: at.Bucket, key: at.Key, versionID: at.VersionID, etag: aws.ToString(v.ETag),
					sizeBytes: aws.ToInt64(v.Size), lastModified: micros(aws.ToTime(v.LastModified)),
				}, nil
			}
		}
		if !aws.ToBool(page.IsTruncated) {
			return nil, nil
		}
		// The SDK's own paginator would hand on the marker as a URL has it.
		in.KeyMarker, in.VersionIdMarker = aws.String(listedKey(page.NextKeyMarker, page.EncodingType)), page.NextVersionIdMarker
	}
}

// receive takes messages from the queue until ctx ends, and as many at a time as can
// wait here.
func (a *announcements) receive(ctx context.Context) error {
	inHand := semaphore.NewWeighted(maxInHand)
	var handling sync.WaitGroup
	defer handling.Wait()
	pause := a.timing.look
	for inHand.Acquire(ctx, 1) == nil {
		places := int64(1)
		for places < 10 && inHand.TryAcquire(1) {
			places++
		}
		out, err := a.sqs.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
			QueueUrl: &a.cfg.Announce.QueueURL, MaxNumberOfMessages: int32(places),
			WaitTimeSeconds: seconds(a.timing.receive), VisibilityTimeout: seconds(a.timing.visibility),
			MessageSystemAttributeNames: []types.MessageSystemAttributeName{types.MessageSystemAttributeNameApproximateReceiveCount},
		})
		if ctx.Err() != nil {
			break // messages on their way come back by themselves
		}
		a.tel.Health.Set(sourceQueue, err)
		if err != nil {
			inHand.Release(places)
			sleep(ctx, pause)
			pause = min(2*pause, maxLook)
			continue
		}
		pause = a.timing.look
		inHand.Release(places - int64(len(out.Messages)))
		for _, m := range out.Messages {
			handling.Go(func() {
				defer inHand.Release(1)
				a.handle(ctx, m)
			})
		}
	}
	return nil
}

// handle removes a message from the queue once everything in it is settled; until
// then the queue is told that somebody has it. Whoever is killed meanwhile has not
// removed it: it comes back.
func (a *announcements) handle(ctx context.Context, m types.Message) {
	objects, err := announce.Parse([]byte(aws.ToString(m.Body)))
	if err != nil {
		a.refuse(ctx, m, err)
		return
	}
	held, letGo := context.WithCancel(ctx)
	defer letGo()
	var holding sync.WaitGroup
	holding.Go(func() {
		for sleep(held, a.timing.visibility/3) {
			// The queue says so when it has given the message to another, or held it for twelve hours.
			var refused smithy.APIError
			if err := a.visible(held, m, a.timing.visibility); errors.As(err, &refused) {
				letGo()
			}
		}
	})
	err = a.settle(held, objects)
	letGo()
	holding.Wait()
	if err != nil {
		a.metrics.announced.WithLabelValues(sourceQueue, resultGivenBack).Inc()
		_ = a.visible(context.WithoutCancel(ctx), m, givenBackAfter) // else it is in a while
		return
	}
	a.metrics.announced.WithLabelValues(sourceQueue, resultSettled).Inc()
	// Once more is harmless: the next time all of it is known.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.timing.answer)
	defer cancel()
	if _, err := a.sqs.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: &a.cfg.Announce.QueueURL, ReceiptHandle: m.ReceiptHandle}); err != nil {
		a.tel.Health.Set(sourceQueue, err)
	}
}

// refuse leaves a message that is none to the queue, whose redrive policy moves it
// aside. Where there is none it comes back in growing intervals until the queue
// forgets it. It is never deleted here: somebody may have sent something that matters.
func (a *announcements) refuse(ctx context.Context, m types.Message, reason error) {
	received, _ := strconv.Atoi(m.Attributes[string(types.MessageSystemAttributeNameApproximateReceiveCount)])
	pause := a.timing.visibility
	for n := 1; n < received && pause < time.Hour; n++ {
		pause *= 2
	}
	a.log.Warn("message is no announcement and is left to the queue", "message_id", aws.ToString(m.MessageId), "times_received", received, "error", reason)
	a.metrics.announced.WithLabelValues(sourceQueue, resultRefused).Inc()
	_ = a.visible(ctx, m, pause) // else sooner
}

// visible says when a message is given to the next who asks.
func (a *announcements) visible(ctx context.Context, m types.Message, after time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, a.timing.answer)
	defer cancel()
	_, err := a.sqs.ChangeMessageVisibility(ctx, &sqs.ChangeMessageVisibilityInput{
		QueueUrl: &a.cfg.Announce.QueueURL, ReceiptHandle: m.ReceiptHandle, VisibilityTimeout: seconds(after),
	})
	return err
}

func seconds(d time.Duration) int32 { return int32(d / time.Second) }
