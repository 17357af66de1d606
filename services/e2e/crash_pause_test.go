package e2e

import (
	"context"
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/hikyaku/hikyaku/schemas/topic"
)

// Who is stopped for longer than its session and wakes up in the middle of its
// work finds that others have its partitions: it neither claims nor commits, and
// nobody is lost or sent to twice.
func TestPausedPastTheSession(t *testing.T) {
	t.Parallel()
	s := startStack(t)
	for _, instances := range []int{2, 3} {
		t.Run(fmt.Sprintf("%d instances", instances), func(t *testing.T) {
			t.Parallel()
			l := newLane(t, t, s)
			l.env["KAFKA_SESSION_TIMEOUT"] = "6s" // the least that a broker takes by default
			// Enough work for a pause in the middle, and claims in hand at any time.
			l.env["WINDOW"], l.size = "200", 800
			l.populate(instances)
			for _, service := range []string{topic.Sender, topic.Renderer, topic.Resolver, topic.Collector} {
				t.Run(service, func(t *testing.T) {
					l.t = t
					l.pauseInARun(service)
				})
			}
		})
	}
}

// pauseInARun stops the first instance of a service when its group is at work, and
// lets it go on when others have done what was left.
func (l *lane) pauseInARun(service string) {
	l.t.Helper()
	mailbox := l.mailbox()
	group := groupOf[service]
	idle := l.committed(group)
	answer := l.begin("greeting")
	l.eventually("the group is at work", func() bool { return l.committed(group) > idle })
	paused := l.children[service].cmd.Process
	require.NoError(l.t, paused.Signal(syscall.SIGSTOP))
	l.eventually("the group goes on without it", func() bool { return !l.member(group, service+"-0") })
	left := l.committed(group)
	var run string
	l.eventually("others do its work", func() bool {
		select {
		case started := <-answer:
			require.NoError(l.t, started.err)
			run = started.run
		default:
		}
		return l.committed(group) > left || run != "" && over(l.stateOf(run))
	})
	require.NoError(l.t, paused.Signal(syscall.SIGCONT))
	if run == "" {
		started := <-answer
		require.NoError(l.t, started.err)
		run = started.run
	}
	l.eventually("the run has ended", func() bool { return over(l.stateOf(run)) })
	d := death{victim: service}
	if service == topic.Sender {
		d.uncertain[1] = most
	}
	l.requireAccounted(d, run, 1, mailbox)
	l.eventually("it is a member again", func() bool { return l.member(group, service+"-0") })
	require.False(l.t, l.children[service].dead(), "it goes on: nobody has taken its name")
	l.requireAllCommitted()
}

// member tells whether an instance is in a group.
func (l *lane) member(g topic.Group, instance string) bool {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	groups, err := l.admin.DescribeGroups(ctx, g.In(l.namespace))
	require.NoError(l.t, err)
	found := false
	for _, described := range groups {
		found = found || hasMember(described, instance)
	}
	return found
}

func hasMember(g kadm.DescribedGroup, instance string) bool {
	for _, m := range g.Members {
		if m.InstanceID != nil && *m.InstanceID == instance {
			return true
		}
	}
	return false
}
