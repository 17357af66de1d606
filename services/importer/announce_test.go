package importer

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	embedded "github.com/hikyaku/hikyaku/deploy/embedded/s3"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/importer/internal/announce"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/importfile"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
	"github.com/hikyaku/hikyaku/services/internal/sqstest"
)

// unlisted is S3 whose listings of the stage's whole prefix are empty: what is
// imported through it was announced. While it is held, nobody can look at an object.
type unlisted struct {
	*httptest.Server
	mu   sync.Mutex
	gate chan struct{} // nil unless held
	held chan struct{} // gets one for each request that waits
}

func (s *stage) unlisted() *unlisted {
	target, err := url.Parse(gateway.Endpoint())
	require.NoError(s.t, err)
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	u := &unlisted{held: make(chan struct{}, 1000)}
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if !q.Has("prefix") {
			proxy.ServeHTTP(w, r)
			return
		}
		if q.Get("prefix") == s.prefix {
			_, _ = io.WriteString(w, `<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>false</IsTruncated></ListBucketResult>`)
			return
		}
		u.mu.Lock()
		gate := u.gate
		u.mu.Unlock()
		if gate != nil {
			u.held <- struct{}{}
			select {
			case <-gate:
			case <-r.Context().Done():
				return
			}
		}
		proxy.ServeHTTP(w, r)
	}))
	s.t.Cleanup(u.Close)
	s.t.Cleanup(u.letGo)
	return u
}

func (u *unlisted) hold() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.gate = make(chan struct{})
}

func (u *unlisted) letGo() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.gate != nil {
		close(u.gate)
	}
	u.gate = nil
}

// announcement is S3's own.
func (s *stage) announcement(name, versionID string, sequencer int) string {
	return fmt.Sprintf(`{"Records":[{"eventSource":"aws:s3","eventName":"ObjectCreated:Put","s3":{"bucket":{"name":%q},"object":{"key":%q,"versionId":%q,"sequencer":"%016X"}}}]}`,
		embedded.DefaultBucket, url.QueryEscape(s.prefix+name), versionID, sequencer)
}

// imports returns the ids of all imports there are, by the names of their objects.
func (s *stage) imports() map[string][]string {
	ids := map[string][]string{}
	seen := map[string]bool{}
	for _, r := range s.kafka.All(s.t, topic.Imports) {
		var i event.Import
		s.kafka.Decode(s.t, r, &i)
		if id := i.ImportID.String(); !seen[id] {
			seen[id] = true
			name := strings.TrimPrefix(i.Key, s.prefix)
			ids[name] = append(ids[name], id)
		}
	}
	return ids
}

// newPeople is a stage with a spec for people, and all that is behind the importer.
func newPeople(t *testing.T) *stage {
	s := newStage(t)
	s.downstream()
	s.define(s.people("people"))
	return s
}

// quick are times of the queue for tests.
func quick(times *timing) {
	times.visibility, times.receive, times.look = 2*time.Second, time.Second, 20*time.Millisecond
}

// listening are the settings of an importer with a queue, and with S3 at an endpoint.
func listening(queue *sqsQueue, endpoint string) func(*Config, *timing) {
	return func(cfg *Config, times *timing) {
		cfg.S3.Endpoint = endpoint
		queue.use(cfg)
		quick(times)
	}
}

// listeningAndListing is listening, and listing as if there were no queue.
func listeningAndListing(queue *sqsQueue) func(*Config, *timing) {
	return func(cfg *Config, times *timing) {
		queue.use(cfg)
		cfg.ListInterval = cfg.PollInterval
		quick(times)
	}
}

func TestWhatIsAnnouncedFiveTimesOutOfOrderIsImportedOnce(t *testing.T) {
	t.Parallel()
	eachSQS(t, func(t *testing.T, queue *sqsQueue) {
		s := newPeople(t)
		s3 := s.unlisted()
		s.put("a b+ü%.csv", file(20))
		s.put("b.csv", file(30))
		for n := range 5 {
			queue.send(s.announcement("b.csv", "", 50-n))
			queue.send(s.announcement("a b+ü%.csv", "", 40-n))
		}
		var all []*Service
		for _, instance := range []string{"0", "1", "2"} {
			svc := s.importer(instance, listening(queue, s3.URL))
			s.run(svc, time.Second)
			all = append(all, svc)
		}
		s.until(all[0], "a b+ü%.csv", importfile.StateDone)
		s.until(all[1], "b.csv", importfile.StateDone)
		queue.until(0, 0)
		ids := s.imports()
		require.Len(t, ids, 2)
		require.Len(t, ids["a b+ü%.csv"], 1)
		require.Len(t, ids["b.csv"], 1)
		s.requireOnce("a b+ü%.csv", 20)
		s.requireOnce("b.csv", 30)
		settled := 0.0
		for _, svc := range all {
			settled += testutil.ToFloat64(svc.metrics.announced.WithLabelValues(sourceQueue, resultSettled))
		}
		require.GreaterOrEqual(t, settled, 10.0)
	})
}

func TestAnAnnouncedAndAListedObjectIsOneImport(t *testing.T) {
	s := newPeople(t)
	queue := newQueue(t, sqstest.Start(t).URL)
	svc := s.importer("0", listeningAndListing(queue))
	s.run(svc, time.Second)
	for n := range 5 {
		name := fmt.Sprintf("f%d.csv", n)
		s.put(name, file(10+n))
		queue.send(s.announcement(name, "", n))
	}
	for n := range 5 {
		s.until(svc, fmt.Sprintf("f%d.csv", n), importfile.StateDone)
	}
	queue.until(0, 0)
	for name, ids := range s.imports() {
		require.Len(t, ids, 1, name)
	}
}

// A test, what is gone, in no prefix, in another bucket or our own, and what happens to objects
// otherwise.
func TestWhatAnnouncesNothingToImportIsRemovedFromTheQueue(t *testing.T) {
	t.Parallel()
	eachSQS(t, func(t *testing.T, queue *sqsQueue) {
		s := newPeople(t)
		queue.send(`{"Service":"Amazon S3","Event":"s3:TestEvent","Time":"2026-11-22T02:00:00.000Z","Bucket":"hikyaku","RequestId":"5582815E1AEA5ADF","HostId":"8cLeGAmw"}`)
		queue.send(s.announcement("gone.csv", "", 1))
		queue.send(s.announcement("../elsewhere.csv", "", 1))
		queue.send(strings.Replace(s.announcement("a.csv", "", 1), embedded.DefaultBucket, "other", 1))
		queue.send(strings.Replace(s.announcement("a.csv", "", 1), "ObjectCreated:Put", "ObjectRemoved:Delete", 1))
		s.put("a.csv"+importfile.RejectsSuffix, file(10))
		queue.send(s.announcement("a.csv"+importfile.RejectsSuffix, "", 1))
		_, err := s.s3().PutObject(context.Background(), &s3.PutObjectInput{
			Bucket: aws.String(embedded.DefaultBucket), Key: aws.String(s.prefix + "copy.csv"), Body: strings.NewReader(file(10)),
			Metadata: map[string]string{metaImport: "0123"},
		})
		require.NoError(t, err)
		queue.send(s.announcement("copy.csv", "", 1))
		svc := s.importer("0", listening(queue, s.unlisted().URL))
		s.run(svc, time.Second)
		queue.until(0, 0)
		require.Empty(t, s.imports())
		require.GreaterOrEqual(t, testutil.ToFloat64(svc.metrics.announced.WithLabelValues(sourceQueue, resultSettled)), 7.0)
	})
}

// A message is in hand as long as its object is not on record, and others are
// handled meanwhile.
func TestAMessageIsHeldUntilItsImportIsOnRecord(t *testing.T) {
	s := newPeople(t)
	fake := sqstest.Start(t)
	queue := newQueue(t, fake.URL)
	s3 := s.unlisted()
	s3.hold()
	s.put("a.csv", file(10))
	svc := s.importer("0", listening(queue, s3.URL))
	s.run(svc, time.Second)
	queue.send(s.announcement("a.csv", "", 1))
	<-s3.held
	queue.send(`{"Event":"s3:TestEvent"}`)
	kafkatest.Eventually(t, func() bool { return len(fake.Delays()) >= 4 }, "the queue is not told that the message is in hand")
	for _, d := range fake.Delays() {
		require.Equal(t, 2*time.Second, d, "the message is to come back then, though it is in hand")
	}
	require.Empty(t, s.imports())
	s3.letGo()
	s.until(svc, "a.csv", importfile.StateDone)
	queue.until(0, 0)
	require.Len(t, s.imports()["a.csv"], 1)
}

func TestAMessageWhoseHolderIsKilledComesBackAndIsImportedOnce(t *testing.T) {
	s := newPeople(t)
	fake := sqstest.Start(t)
	queue := newQueue(t, fake.URL)
	s3 := s.unlisted()
	s3.hold()
	s.put("a.csv", file(50))
	queue.send(s.announcement("a.csv", "", 1))
	use := listening(queue, s3.URL)
	killed := s.importer("0", use)
	stop := s.run(killed, 0)
	<-s3.held // it has the message and looks at the object
	queue.until(0, 1)
	fake.SetAway(true) // the dead give nothing back
	stop()
	fake.SetAway(false)
	require.Empty(t, s.imports())

	s3.letGo()
	heir := s.importer("1", use)
	s.run(heir, time.Second)
	s.until(heir, "a.csv", importfile.StateDone)
	queue.until(0, 0)
	require.Len(t, s.imports()["a.csv"], 1)
	s.requireOnce("a.csv", 50)
}

// Whoever stops gives back what it holds.
func TestAMessageIsGivenBackAtASignal(t *testing.T) {
	s := newStage(t)
	s.define(s.people("people"))
	fake := sqstest.Start(t)
	queue := newQueue(t, fake.URL)
	s3 := s.unlisted()
	s3.hold()
	s.put("a.csv", file(50))
	queue.send(s.announcement("a.csv", "", 1))
	svc := s.importer("0", func(cfg *Config, times *timing) {
		listening(queue, s3.URL)(cfg, times)
		times.visibility = time.Hour
	})
	stop := s.run(svc, time.Second)
	<-s3.held
	stop()
	require.Equal(t, []time.Duration{time.Second}, fake.Delays(), "not at once: the receive that was given up would take it")
	queue.until(1, 0)
	require.EqualValues(t, 1, testutil.ToFloat64(svc.metrics.announced.WithLabelValues(sourceQueue, resultGivenBack)))
}

func TestAPoisonMessageStaysInTheQueueAndStopsNobody(t *testing.T) {
	s := newPeople(t)
	fake := sqstest.Start(t)
	queue := newQueue(t, fake.URL)
	queue.send("people.csv is there")
	s.put("a.csv", file(10))
	queue.send(s.announcement("a.csv", "", 1))
	svc := s.importer("0", func(cfg *Config, times *timing) {
		listening(queue, s.unlisted().URL)(cfg, times)
		times.visibility = time.Second
	})
	s.run(svc, time.Second)
	s.until(svc, "a.csv", importfile.StateDone)
	// The pauses grow, so that it is not read in a hot loop where nobody takes it away. The
	// first is as long as a message in hand is held for, so only those after it tell.
	kafkatest.Eventually(t, func() bool { return len(fake.Receives()) == 1 && fake.Receives()[0] >= 3 }, "the message does not come back")
	kafkatest.Eventually(t, func() bool {
		var pauses []time.Duration
		for _, d := range fake.Delays() {
			if d > svc.timing.visibility {
				pauses = append(pauses, d)
			}
		}
		return len(pauses) >= 2 && pauses[len(pauses)-1] > pauses[0]
	}, "the pauses do not grow")
	require.GreaterOrEqual(t, testutil.ToFloat64(svc.metrics.announced.WithLabelValues(sourceQueue, resultRefused)), 3.0)
}

func TestSQSAwayIsSaidAndTheListingGoesOn(t *testing.T) {
	s := newPeople(t)
	fake := sqstest.Start(t)
	queue := newQueue(t, fake.URL)
	fake.SetAway(true)
	svc := s.importer("0", listeningAndListing(queue))
	s.run(svc, time.Second)
	notReady := func() string { return strings.Join(svc.tel.Health.NotReady(), " ") }
	kafkatest.Eventually(t, func() bool { return strings.Contains(notReady(), "sqs") }, "SQS's absence is not said")
	s.put("a.csv", file(10))
	s.until(svc, "a.csv", importfile.StateDone)
	fake.SetAway(false)
	kafkatest.Eventually(t, func() bool { return notReady() == "" }, "SQS's return is not said")
}

// In a bucket with versions each is an import of its own, though the first and the
// third have the same bytes; and each is one, however often it is announced, and listed.
func TestEachVersionOfAnObjectIsImportedOnce(t *testing.T) {
	s := newPeople(t)
	bucket := strings.ToLower(strings.Trim(s.prefix, "/"))
	ctx := context.Background()
	client := s.s3()
	_, err := client.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &bucket})
	require.NoError(t, err)
	_, err = client.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{
		Bucket: &bucket, VersioningConfiguration: &s3types.VersioningConfiguration{Status: s3types.BucketVersioningStatusEnabled},
	})
	require.NoError(t, err)
	put := func(name, body string, metadata map[string]string) string {
		out, err := client.PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: aws.String(s.prefix + name), Body: strings.NewReader(body), Metadata: metadata})
		require.NoError(t, err)
		return aws.ToString(out.VersionId)
	}
	var versions []string
	for _, rows := range []int{11, 12, 11} {
		versions = append(versions, put("a.csv", file(rows), nil))
		// The gateway gives a version the time at which the next came.
		now := time.Now().Unix()
		kafkatest.Eventually(t, func() bool { return time.Now().Unix() > now }, "time stands still")
	}
	queue := newQueue(t, sqstest.Start(t).URL)
	announce := func(name, version string, sequencer int) {
		queue.send(strings.Replace(s.announcement(name, version, sequencer), embedded.DefaultBucket, bucket, 1))
	}
	for _, n := range []int{2, 0, 1, 0, 1, 2} {
		announce("a.csv", versions[n], n)
	}
	// A file of ours that was put over another is told by its own version.
	before := put("b.csv", file(13), nil)
	announce("b.csv", put("b.csv", file(14), map[string]string{metaImport: "0123"}), 2)
	announce("b.csv", before, 1)

	target, err := url.Parse(gateway.Endpoint())
	require.NoError(t, err)
	proxy := httputil.NewSingleHostReverseProxy(target)
	var heads atomic.Int64
	counting := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead && strings.HasSuffix(r.URL.Path, "/a.csv") {
			heads.Add(1)
		}
		proxy.ServeHTTP(w, r)
	}))
	defer counting.Close()
	svc := s.importer("0", func(cfg *Config, times *timing) {
		listening(queue, counting.URL)(cfg, times)
		cfg.S3.Bucket, cfg.ListInterval = bucket, cfg.PollInterval
	})
	stop := s.run(svc, time.Second)
	defer stop()
	queue.until(0, 0)
	done := map[string]event.Import{}
	kafkatest.Eventually(t, func() bool {
		svc.progress.mu.RLock()
		defer svc.progress.mu.RUnlock()
		for _, e := range svc.progress.byID {
			if e.State == importfile.StateDone {
				done[e.VersionID] = e.Import
			}
		}
		return len(done) == 4
	}, "not four imports are done")
	require.EqualValues(t, 13, done[before].Rows)
	for n, rows := range []int{11, 12, 11} {
		require.EqualValues(t, rows, done[versions[n]].Rows)
	}

	// Once more; and the newest taken away: the one before is listed then, with another time,
	// and known once it has been asked for.
	for n, v := range versions {
		announce("a.csv", v, 9-n)
	}
	queue.until(0, 0)
	asked := heads.Load()
	_, err = client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &bucket, Key: aws.String(s.prefix + "a.csv"), VersionId: &versions[2]})
	require.NoError(t, err)
	kafkatest.Eventually(t, func() bool { return heads.Load() > asked }, "the version is not looked at")
	for _, name := range []string{"y.csv", "z.csv"} {
		put(name, file(10), nil)
		s.until(svc, name, importfile.StateDone)
	}
	require.LessOrEqual(t, heads.Load(), asked+2)
	require.Len(t, s.imports()["a.csv"], 3)
	require.Len(t, s.imports()["b.csv"], 1)

	// A version is what it is, whatever time is shown for it.
	o := objectOf(new(done[versions[1]]))
	o.lastModified = o.lastModified.Add(-time.Hour)
	src := svc.open(ctx, o)
	defer src.Close()
	body, err := io.ReadAll(src)
	require.NoError(t, err)
	require.Equal(t, file(12), string(body))
}

// addressed is a log that hands on the first address in it.
type addressed struct {
	slog.Handler
	at chan<- string
}

func (h addressed) Handle(ctx context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "address" {
			select {
			case h.at <- a.Value.String():
			default:
			}
		}
		return true
	})
	return h.Handler.Handle(ctx, r)
}

func TestTheWebhookAnswersWhenWhatIsAnnouncedIsSettled(t *testing.T) {
	s := newPeople(t)
	s3 := s.unlisted()
	serve := func(instance string, answer time.Duration) (addr string, stop func()) {
		svc := s.importer(instance, func(cfg *Config, times *timing) {
			cfg.S3.Endpoint = s3.URL
			cfg.Announce.Listen, cfg.Announce.Token = "127.0.0.1:0", "secret"
			quick(times)
			times.answer = answer
		})
		at := make(chan string, 1)
		svc.log = slog.New(addressed{svc.log.Handler(), at})
		stop = s.run(svc, time.Second)
		select {
		case addr = <-at:
		case <-time.After(kafkatest.Patience):
			require.FailNow(t, "nobody listens")
		}
		return addr, stop
	}
	addr, stop := serve("0", time.Minute)
	post := func(user *url.Userinfo, token, body string) int {
		r, err := http.NewRequest(http.MethodPost, (&url.URL{Scheme: "http", User: user, Host: addr, Path: "/minio"}).String(), strings.NewReader(body))
		require.NoError(t, err)
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			return 0
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	test := `{"Event":"s3:TestEvent"}`
	require.Equal(t, http.StatusUnauthorized, post(nil, "", test))
	require.Equal(t, http.StatusUnauthorized, post(nil, "secre", test))
	require.Equal(t, http.StatusUnauthorized, post(url.UserPassword("hikyaku", "wrong"), "", test))
	require.Equal(t, http.StatusOK, post(nil, "secret", test))
	require.Equal(t, http.StatusOK, post(url.UserPassword("hikyaku", "secret"), "", test))
	require.Equal(t, http.StatusBadRequest, post(nil, "secret", "{}"))
	require.Equal(t, http.StatusRequestEntityTooLarge, post(nil, "secret", strings.Repeat(" ", maxAnnouncement+1)))

	// On record when it is answered, and once.
	s.put("a b.csv", file(20))
	for range 3 {
		require.Equal(t, http.StatusOK, post(nil, "secret", s.announcement("a b.csv", "", 1)))
		require.Len(t, s.imports()["a b.csv"], 1)
	}
	s.put("ü+.csv", file(20)) // as versitygw has it
	require.Equal(t, http.StatusOK, post(nil, "secret", strings.Replace(s.announcement("x", "", 1), url.QueryEscape(s.prefix+"x"), s.prefix+"ü+.csv", 1)))
	require.Len(t, s.imports()["ü+.csv"], 1)
	require.Equal(t, http.StatusOK, post(nil, "secret", `{"source":"aws.s3","detail-type":"Object Created","detail":{"bucket":{"name":"hikyaku"},"object":{"key":"`+s.prefix+`ü+.csv"}}}`))

	// What nobody can look at is not settled when a signal comes, or the time is over.
	s3.hold()
	s.put("b.csv", file(20))
	answered := make(chan int, 1)
	go func() { answered <- post(nil, "secret", s.announcement("b.csv", "", 1)) }()
	<-s3.held
	stop()
	require.Equal(t, http.StatusServiceUnavailable, <-answered)
	addr, _ = serve("1", 50*time.Millisecond)
	require.Equal(t, http.StatusServiceUnavailable, post(nil, "secret", s.announcement("b.csv", "", 1)))
	require.Empty(t, s.imports()["b.csv"])
}

func TestTheWebhookIsOpenOnLoopbackOnly(t *testing.T) {
	for _, c := range []struct {
		addr  string
		token config.Secret
		valid bool
	}{
		{"", "", true},
		{"127.0.0.1:8099", "", true},
		{"[::1]:8099", "", true},
		{"localhost:8099", "", true},
		{"0.0.0.0:8099", "", false},
		{":8099", "", false},
		{"importer:8099", "", false},
		{"0.0.0.0:8099", "secret", true},
		{"8099", "secret", false},
	} {
		err := AnnounceConfig{Listen: c.addr, Token: c.token}.Validate()
		require.Equal(t, c.valid, err == nil, "%s: %v", c.addr, err)
	}
}

// A server that answers as S3 does when it is asked for keys as URLs have them.
func TestAKeyWithCharactersThatXMLCannotHaveIsListedAndFound(t *testing.T) {
	s := newStage(t)
	const key, shown, entry = "in/a\x01 +é%2F.csv", "in/a%01+%2B%C3%A9%252F.csv", `<Key>%s</Key><LastModified>2026-11-22T02:00:00.123Z</LastModified><ETag>"e"</ETag><Size>1</Size>`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		require.Equal(t, "url", q.Get("encoding-type"))
		switch {
		case !q.Has("versions"):
			_, _ = fmt.Fprintf(w, `<ListBucketResult><EncodingType>url</EncodingType><Contents>`+entry+`</Contents></ListBucketResult>`, shown)
		case !q.Has("key-marker"):
			_, _ = fmt.Fprintf(w, `<ListVersionsResult><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated><NextKeyMarker>%s</NextKeyMarker><NextVersionIdMarker>v2</NextVersionIdMarker>`+
				`<Version><VersionId>v2</VersionId>`+entry+`</Version></ListVersionsResult>`, shown, shown)
		default:
			require.Equal(t, key, q.Get("key-marker"))
			require.Equal(t, "v2", q.Get("version-id-marker"))
			_, _ = fmt.Fprintf(w, `<ListVersionsResult><EncodingType>url</EncodingType><Version><VersionId>v1</VersionId>`+entry+`</Version></ListVersionsResult>`, shown)
		}
	}))
	defer server.Close()
	svc := s.importer("0", func(cfg *Config, _ *timing) { cfg.S3.Endpoint = server.URL })
	want := object{bucket: embedded.DefaultBucket, key: key, etag: `"e"`, sizeBytes: 1, lastModified: time.Date(2026, 11, 22, 2, 0, 0, 123e6, time.UTC)}
	ctx := context.Background()
	var listed []object
	require.NoError(t, svc.list(ctx, "in/", func(o object) { listed = append(listed, o) }))
	require.Equal(t, []object{want}, listed)
	found, err := svc.find(ctx, announce.Object{Bucket: want.bucket, Key: key})
	require.NoError(t, err)
	require.Equal(t, &want, found)
	want.versionID = "v1"
	found, err = svc.find(ctx, announce.Object{Bucket: want.bucket, Key: key, VersionID: "v1"})
	require.NoError(t, err)
	require.Equal(t, &want, found)
	found, err = svc.find(ctx, announce.Object{Bucket: want.bucket, Key: key, VersionID: "v0"})
	require.NoError(t, err)
	require.Nil(t, found)
}
