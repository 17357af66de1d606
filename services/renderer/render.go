package renderer

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/services/internal/render"
)

// stage is the whole service for one request: read, render, write. What cannot
// be rendered for one person is a rejection of that message and of no other.
func (s *Service) stage(in *input, out *output) func(context.Context, *kgo.Record) ([]*kgo.Record, error) {
	return func(ctx context.Context, r *kgo.Record) ([]*kgo.Record, error) {
		j, err := in.read(ctx, r)
		if err != nil {
			return nil, err
		}
		mail, err := s.mail.Email(ctx, &j.request, j.campaign, j.template)
		var rejection *render.Rejection
		switch {
		case errors.As(err, &rejection):
			s.metrics.rejected.WithLabelValues(rejection.Reason).Inc()
			return out.rejected(&j.request, rejection)
		case err != nil:
			return nil, err
		}
		s.metrics.bytes.Add(float64(len(mail.MIME)))
		return out.rendered(&j.request, mail)
	}
}
