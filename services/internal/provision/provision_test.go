package provision_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
	"github.com/hikyaku/hikyaku/services/internal/provision"
)

func options(k *kafkatest.Kafka) provision.Options {
	return provision.Options{Kafka: k.Config(), Config: provision.Config{Partitions: 4, ReplicationFactor: 1, Patience: kafkatest.Patience}}
}

func settings(t *testing.T, k *kafkatest.Kafka, name topic.Name) map[string]string {
	t.Helper()
	described, err := k.Admin().DescribeTopicConfigs(t.Context(), name.In("test"))
	require.NoError(t, err)
	have, err := described.On(name.In("test"), nil)
	require.NoError(t, err)
	got := map[string]string{}
	for _, c := range have.Configs {
		got[c.Key] = c.MaybeValue()
	}
	return got
}

func TestRunMakesTheCatalogueAndTwiceChangesNothing(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.Bare())
	o := options(k)
	migrated := 0
	o.Migrate = func(context.Context) ([]string, error) {
		if migrated++; migrated == 1 {
			return []string{"0001_facts"}, nil
		}
		return nil, nil
	}
	report, err := provision.Run(t.Context(), o)
	require.NoError(t, err)
	require.Len(t, report.Created, len(topic.Catalogue()))
	require.Len(t, report.Schemas, len(topic.Catalogue()))
	require.Equal(t, []string{"0001_facts"}, report.Migrations)
	require.True(t, report.Changed())

	for _, row := range topic.Catalogue() {
		info := k.Fake.TopicInfo(row.Name.In("test"))
		require.NotNil(t, info, row.Name)
		require.True(t, k.Registry.SubjectExists(row.Name.Subject("test")))
		for _, g := range row.Readers {
			committed := k.Committed(t, g)[row.Name]
			require.Len(t, committed, row.PartitionCount(4), "%s on %s", g, row.Name)
			for _, at := range committed {
				require.Zero(t, at)
			}
		}
	}
	profiles := settings(t, k, topic.Profiles)
	require.Equal(t, "compact", profiles["cleanup.policy"])
	require.Equal(t, "-1", profiles["retention.ms"])
	require.Equal(t, "604800000", profiles["delete.retention.ms"])
	require.Equal(t, "3600000", settings(t, k, topic.Ticks)["retention.ms"])
	messages := settings(t, k, topic.MessagesEmailBulk)
	require.Equal(t, "2097152", messages["max.message.bytes"])
	require.Equal(t, "-1", messages["retention.bytes"], "bounded only where somebody asks for it")

	again, err := provision.Run(t.Context(), o)
	require.NoError(t, err)
	require.False(t, again.Changed(), again)
	require.Equal(t, "namespace test is as it should be, nothing was changed", again.String())
}

func TestRunLeavesOffsetsAloneThatAGroupHasCommitted(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t)
	var moved kadm.Offsets
	moved.AddOffset(topic.Ticks.In("test"), 2, 7, -1)
	require.NoError(t, k.Admin().CommitAllOffsets(t.Context(), topic.GroupPersonLoop.In("test"), moved))
	gone := kadm.TopicsSet{}
	gone.Add(topic.Ticks.In("test"), 3)
	_, err := k.Admin().DeleteOffsets(t.Context(), topic.GroupPersonLoop.In("test"), gone)
	require.NoError(t, err)

	require.Equal(t, 1, k.Provision(t, 4).Offsets)
	require.Equal(t, map[int32]int64{0: 0, 1: 0, 2: 7, 3: 0}, k.Committed(t, topic.GroupPersonLoop)[topic.Ticks])
}

func TestRunRefusesAClusterThatContradictsTheCatalogue(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.Bare())
	require.NoError(t, k.Fake.CreateTopic(topic.Outcomes.In("test"), 3, nil))
	report, err := provision.Run(t.Context(), options(k))
	require.ErrorContains(t, err, "topic test.outcomes has 3 partitions, the catalogue wants 4")
	require.ErrorContains(t, err, "PARTITIONS=4")
	require.ErrorContains(t, err, "provision another NAMESPACE")
	require.Equal(t, fault.ClassFatal, fault.ClassOf(err))
	require.False(t, report.Changed())
	require.Nil(t, k.Fake.TopicInfo(topic.Ticks.In("test")), "something was made before it refused")
}

func TestRunKeepsToThePartitionsANamespaceWasMadeWith(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t)
	o := options(k)
	o.Partitions = 8
	_, err := provision.Run(t.Context(), o)
	require.ErrorContains(t, err, "topic test.profile-updates has 4 partitions, with PARTITIONS=8 it would have 8: namespace test was made with PARTITIONS=4")
	require.Equal(t, fault.ClassFatal, fault.ClassOf(err))
}

func TestRunAsksToStopAGroupThatRuns(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t)
	gone := kadm.TopicsSet{}
	gone.Add(topic.Outcomes.In("test"), 0)
	_, err := k.Admin().DeleteOffsets(t.Context(), topic.GroupPersonLoop.In("test"), gone)
	require.NoError(t, err)
	member, err := kgo.NewClient(kgo.SeedBrokers(k.Config().Brokers...), kgo.ConsumerGroup(topic.GroupPersonLoop.In("test")), kgo.ConsumeTopics(topic.Ticks.In("test")))
	require.NoError(t, err)
	defer member.Close()
	_, err = k.Fake.WaitGroupStable(t.Context(), topic.GroupPersonLoop.In("test"), 1)
	require.NoError(t, err)

	_, err = provision.Run(t.Context(), options(k))
	require.ErrorContains(t, err, "group test.audience-resolver reads test.outcomes for the first time, but has running members: stop the services")
}

func TestRunMendsSettingsThatDiffer(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t)
	o := options(k)
	o.BoundedRetentionBytes = 64 << 20
	report, err := provision.Run(t.Context(), o)
	require.NoError(t, err)
	require.ElementsMatch(t, []topic.Name{topic.MessagesEmailBulk, topic.RetriesEmail}, report.Altered)
	require.Equal(t, "67108864", settings(t, k, topic.MessagesEmailBulk)["retention.bytes"])
	require.Equal(t, "-1", settings(t, k, topic.Outcomes)["retention.bytes"])
	report, err = provision.Run(t.Context(), o)
	require.NoError(t, err)
	require.False(t, report.Changed(), report)
}

func TestRunWaitsForWhatIsAwayAndGivesUpInTheEnd(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.Bare())
	refusals := 0
	k.Fake.ControlKey(int16(kmsg.CreateTopics), func(req kmsg.Request) (kmsg.Response, error, bool) {
		if refusals++; refusals > 2 {
			return nil, nil, false
		}
		k.Fake.KeepControl()
		r := req.(*kmsg.CreateTopicsRequest)
		resp := r.ResponseKind().(*kmsg.CreateTopicsResponse)
		for _, t := range r.Topics {
			rt := kmsg.NewCreateTopicsResponseTopic()
			rt.Topic, rt.ErrorCode = t.Topic, kerr.NotController.Code
			resp.Topics = append(resp.Topics, rt)
		}
		return resp, nil, true
	})
	o := options(k)
	tries := 0
	o.Migrate = func(context.Context) ([]string, error) {
		if tries++; tries < 3 {
			return nil, fault.Transient(errors.New("ClickHouse is away"))
		}
		return nil, nil
	}
	_, err := provision.Run(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, 3, tries)

	reached := false
	o.Migrate = func(context.Context) ([]string, error) {
		reached = true
		return nil, fault.Transient(errors.New("ClickHouse is away"))
	}
	// A machine that is busy may need more for the steps before.
	for o.Patience = time.Second; !reached && o.Patience < kafkatest.Patience; o.Patience *= 2 {
		_, err = provision.Run(t.Context(), o)
	}
	require.ErrorContains(t, err, "migrating ClickHouse: ClickHouse is away")
	require.Equal(t, fault.ClassTransient, fault.ClassOf(err))
}
