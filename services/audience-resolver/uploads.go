package resolver

import (
	"context"
	"slices"
	"time"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/services/internal/definitions"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/schedule"
)

// segmentLog is what the versions of a segment say, read as they come.
type segmentLog struct {
	read    int64            // number of the last version read
	now     event.SegmentPin // as it is in force
	uploads []upload         // in the order of their ends
	undone  map[identity.ID]bool
}

// upload is an import that ended and made people members of a segment.
type upload struct {
	importID identity.ID
	version  int64 // of the segment that it made
	place    int64 // of that version among the definitions
	at       time.Time
}

// segment returns the log of a segment, read to the version in force.
func (l *personLoop) segment(id string) *segmentLog {
	s := l.segments[id]
	if s == nil {
		s = &segmentLog{now: event.SegmentPin{SegmentID: id}, undone: map[identity.ID]bool{}}
		l.segments[id] = s
	}
	head, ok := l.defs.Head(definitions.KindSegment, id)
	for ok && s.read < head.Number {
		s.read++
		v, found := l.defs.Get(definitions.KindSegment, id, s.read)
		if !found {
			continue // a number that a writer gave up
		}
		body, err := definitions.DecodeSegment(v)
		if err != nil {
			l.log.Error("a version of a segment cannot be read: the import that made it starts no campaign", "segment_id", id, "version", v.Number, "error", err)
			continue
		}
		s.now = body.Pin(id)
		if !body.Undone.IsZero() {
			s.undone[body.Undone] = true
		}
		if slices.Contains(body.Imports, body.Ended) && !slices.Contains(body.Removes, body.Ended) {
			s.uploads = append(s.uploads, upload{body.Ended, v.Number, v.Place, v.AppliedAt})
		}
	}
	return s
}

// startUploads starts a run for each upload to the campaign's segment since the
// campaign has been at it. Which these are, the definitions tell, and the run of
// each is known by its import (I5): so none is lost and none starts twice,
// however often this looks, or whoever does.
func (l *personLoop) startUploads(ctx context.Context, b *batch, campaignID string, s *scheduledAt, now time.Time) {
	segment := l.segment(s.at.Segment)
	for i := s.settled; i < len(segment.uploads); i++ {
		u := &segment.uploads[i]
		run := identity.Run(l.cluster.Namespace(), campaignID, u.importID.String())
		_, started := b.run(run)
		settled := started || u.place < s.since || segment.undone[u.importID]
		if _, _, seen := l.view.State(run); settled && i == s.settled && (seen || !started) {
			s.settled++ // the view has it, or there will never be one
		}
		if settled {
			continue
		}
		if late := schedule.Late(u.at, now); late != "" {
			b.write(run, campaignID, schedule.Refused(nil, u.at, now, late))
			continue
		}
		v, _ := l.defs.Get(definitions.KindSegment, s.at.Segment, u.version)
		body, err := definitions.DecodeSegment(v)
		if err != nil {
			continue // it was read before
		}
		pin := body.Pin(s.at.Segment)
		l.log.InfoContext(ctx, "an upload starts a campaign", "campaign_id", campaignID, "segment_id", s.at.Segment, "import_id", u.importID.String(), "run_id", run.String())
		l.begin(b, run, campaignID, &pin, true, nil, u.at, now)
	}
}

// sinceWhen returns the place of the version with which a campaign came to start at
// what it starts at now: an edit of something else does not make it begin anew.
func (l *personLoop) sinceWhen(v definitions.Version, at definition.At) int64 {
	for n := v.Number - 1; n > 0; n-- {
		before, ok := l.defs.Get(v.Kind, v.ID, n)
		if !ok {
			continue
		}
		campaign, err := definitions.Decode[*definition.Campaign](before)
		if err != nil || campaign.At != at {
			break
		}
		v = before
	}
	return v.Place
}
