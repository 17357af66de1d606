package importer

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/importfile"
	"github.com/hikyaku/hikyaku/services/internal/importfile/pinpoint"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// transact produces rows, learns their offsets, produces the progress with
// them, and commits all of it.
func (i *importing) transact(work context.Context, b *batch) error {
	began := time.Now()
	if err := i.client.BeginTransaction(); err != nil {
		return err
	}
	if err := i.write(work, b); err != nil {
		// It is not aborted here: the client could open the id again to do so,
		// and fence the one who has it now. Whoever opens it next aborts it.
		return err
	}
	crash.At(crash.ImporterMarked)
	if err := i.client.EndTransaction(work, kgo.TryCommit); err != nil {
		return err
	}
	crash.At(crash.ImporterCommitted)
	i.metrics.committed.Observe(time.Since(began).Seconds())
	return nil
}

func (i *importing) write(work context.Context, b *batch) error {
	if len(b.records) > 0 {
		if err := kafka.ProduceSync(work, i.client, b.records...); err != nil {
			return err
		}
		crash.At(crash.ImporterProduced)
		b.after.Published = written(i.at.Published, i.cluster, b.records)
	} else {
		b.after.Published = i.at.Published
	}
	b.after.UpdatedAt = micros(time.Now())
	r, err := i.record(&b.after)
	if err != nil {
		return err
	}
	return kafka.ProduceSync(work, i.client, r)
}

// record makes a progress record of this member.
func (s *Service) record(e *event.Import) (*kgo.Record, error) {
	return s.cluster.Owned(topic.Imports, e.ImportID.String(), e)
}

// report is <object>.report.json.
type report struct {
	ImportID    string `json:"import_id"`
	Spec        string `json:"spec"`
	SpecVersion int64  `json:"spec_version"`
	Bucket      string `json:"bucket"`
	Key         string `json:"key"`
	SizeBytes   int64  `json:"size_bytes"`

	State      string    `json:"state"` // done or failed
	Error      string    `json:"error,omitempty"`
	Segment    string    `json:"segment,omitempty"`
	Superseded bool      `json:"superseded,omitempty"` // a later file makes up the segment
	NotTaken   []string  `json:"not_taken,omitempty"`  // what the built-in spec makes nothing of, if the file has it
	StartedAt  time.Time `json:"started_at"`
	Seconds    float64   `json:"seconds"` // from start to this report

	Rows           int64 `json:"rows"`
	Rejected       int64 `json:"rejected"`
	ProfileUpdates int64 `json:"profile_updates"`
	SegmentMembers int64 `json:"segment_members"`
	Events         int64 `json:"events"`

	RejectedBy   []reasonCount `json:"rejected_by,omitempty"`
	FirstRejects []rejectLine  `json:"first_rejects,omitempty"`
}

type reasonCount struct {
	Column string `json:"column,omitempty"`
	Reason string `json:"reason"`
	Rows   int64  `json:"rows"`
}

type rejectLine struct {
	Line   int64  `json:"line"`
	Column string `json:"column,omitempty"`
	Reason string `json:"reason"`
}

// firstRejects of an import are in its report with their lines.
const firstRejects = 20

// writeFiles writes the reject file and the report, from what is committed: a
// repetition writes the same.
func (i *importing) writeFiles(work context.Context, state, reason string, superseded bool) error {
	file, err := os.CreateTemp("", "hikyaku-rejects-*.csv")
	if err != nil {
		return fmt.Errorf("making the reject file: %w", err)
	}
	defer os.Remove(file.Name())
	defer file.Close()
	r := report{
		ImportID: i.at.ImportID.String(), Spec: i.at.SpecID, SpecVersion: i.at.SpecVersion,
		Bucket: i.at.Bucket, Key: i.at.Key, SizeBytes: i.at.SizeBytes,
		State: state, Error: reason, Segment: i.at.SegmentID, Superseded: superseded,
		StartedAt: i.at.StartedAt, Seconds: float64(time.Since(i.at.StartedAt).Milliseconds()) / 1000,
		Rows: i.at.Rows, Rejected: i.at.Rejected,
		ProfileUpdates: i.at.ProfileUpdates, SegmentMembers: i.at.SegmentMembers, Events: i.at.Events,
	}
	if i.at.SpecID == pinpoint.SpecID {
		r.NotTaken = pinpoint.NotTaken()
	}
	if err := i.collectRejects(work, file, &r); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	i.at.FilesPrefix = i.cfg.RejectsPrefix // on record with the state that follows
	beside := i.at.FilesPrefix + i.at.Key
	rejects := i.put(work, beside+importfile.RejectsSuffix, "text/csv; charset=utf-8", file)
	crash.At(crash.ImporterRejects)
	err = errors.Join(rejects, i.put(work, beside+importfile.ReportSuffix, "application/json", strings.NewReader(string(text)+"\n")))
	crash.At(crash.ImporterReported)
	return err
}

// clockMargin is how far the clocks of two instances may be apart.
const clockMargin = 5 * time.Minute

// collectRejects writes the import's rejects to a file, one at a time, and sums
// them up for the report.
func (i *importing) collectRejects(work context.Context, file io.Writer, sum *report) error {
	buffered := bufio.NewWriter(file)
	out := csv.NewWriter(buffered)
	if err := out.Write([]string{"line", "column", "reason", "row"}); err != nil {
		return fmt.Errorf("writing rejects: %w", err)
	}
	if i.at.Rejected > 0 {
		var tally importfile.Tally
		table := i.cluster.Table([]topic.Name{topic.ImportRejects}, func(r *kgo.Record) error {
			if string(r.Key) != sum.ImportID {
				return nil
			}
			var reject event.ImportReject
			if err := i.cluster.Decode(r, &reject); err != nil {
				return err
			}
			if len(sum.FirstRejects) < firstRejects {
				sum.FirstRejects = append(sum.FirstRejects, rejectLine{reject.Line, strings.Clone(reject.Column), strings.Clone(reject.Reason)})
			}
			tally.Add(reject.Line, reject.Column, reject.Reason)
			return out.Write([]string{strconv.FormatInt(reject.Line, 10), reject.Column, reject.Reason, reject.Row})
		}, kafka.TableFrom(i.at.StartedAt.Add(-clockMargin)))
		if err := follow(work, table, table.CaughtUp); err != nil {
			return fault.Transient(fmt.Errorf("reading the rejects of import %s: %w", sum.ImportID, err))
		}
		for _, k := range tally.Kinds(func(a, b importfile.RejectKind) int { return strings.Compare(a.Column+a.Reason, b.Column+b.Reason) }) {
			sum.RejectedBy = append(sum.RejectedBy, reasonCount{k.Column, k.Reason, k.Rows})
		}
	}
	out.Flush()
	if err := errors.Join(out.Error(), buffered.Flush()); err != nil {
		return fmt.Errorf("writing rejects: %w", err)
	}
	return nil
}

// maxKeyBytes is S3's.
const maxKeyBytes = 1024

// put writes a file of ours. Without the right to, the import ends all the
// same: its records are there.
func (i *importing) put(work context.Context, key, contentType string, body io.ReadSeeker) error {
	if len(key) > maxKeyBytes {
		i.log.Warn("no room in the key for a reject file or report", "key_written", key)
		return nil
	}
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("writing %s: %w", key, err)
	}
	_, err := i.s3.PutObject(work, &s3.PutObjectInput{
		Bucket: &i.at.Bucket, Key: &key, Body: body, ContentType: aws.String(contentType),
		Metadata: map[string]string{metaImport: i.at.ImportID.String()},
	})
	switch {
	case status(err) == http.StatusForbidden:
		i.log.Warn("no right to write the reject file or report", "key_written", key)
		return nil
	case err != nil:
		return fault.Transient(fmt.Errorf("writing s3://%s/%s: %w", i.at.Bucket, key, err))
	}
	return nil
}
