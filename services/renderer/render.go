package renderer

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/render"
)

// stage is the whole service for one request: read, render, write. What cannot
// be rendered for one person is a rejection of that message and of no other.
func (s *Service) stage(in *input, out *output) func(context.Context, *kgo.Record) ([]*kgo.Record, error) {
	mail := new(render.Rendered) // for one message after another: records hold copies
	return func(ctx context.Context, r *kgo.Record) ([]*kgo.Record, error) {
		j, err := in.read(ctx, r)
		if err != nil {
			return nil, err
		}
		err = s.mail.EmailInto(ctx, mail, &j.request, j.campaign, j.template)
		var rejection *render.Rejection
		if err != nil && !errors.As(err, &rejection) {
			return nil, err
		}
		if rejection == nil {
			records, err := out.rendered(j, mail)
			if !errors.Is(err, kafka.ErrTooLarge) {
				s.metrics.bytes.Add(float64(len(mail.MIME)))
				return records, err
			}
			// What stands beside the message in its record has no bound of its own.
			rejection = &render.Rejection{Reason: render.TooLarge, Detail: "the message and what is said of it are more than a record holds"}
		}
		s.metrics.rejected.WithLabelValues(rejection.Reason).Inc()
		return out.rejected(j, rejection)
	}
}
