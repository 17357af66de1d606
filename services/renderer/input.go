package renderer

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// input reads a request and the exact definitions that it names.
type input struct {
	cluster   *kafka.Cluster
	campaigns *definitions.Exact[*definition.Campaign]
	templates *definitions.Exact[*definition.Template]
}

// job is everything that rendering one message takes.
type job struct {
	request  event.MessageRequest
	attempt  int32 // 0, or that of a replay
	campaign *definition.Campaign
	template *definition.Template
}

// read decodes a request. A version that this instance has not read yet is
// waited for, not judged.
func (in *input) read(ctx context.Context, r *kgo.Record) (*job, error) {
	j := &job{attempt: kafka.Attempt(r)}
	if err := in.cluster.Decode(r, &j.request); err != nil {
		return nil, err
	}
	var err error
	if j.campaign, err = in.campaigns.Get(ctx, j.request.CampaignID, j.request.CampaignVersion); err != nil {
		return nil, err
	}
	j.template, err = in.templates.Get(ctx, j.request.TemplateID, j.request.TemplateVersion)
	return j, err
}
