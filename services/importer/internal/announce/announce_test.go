package announce

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// The files in testdata: versitygw's were recorded from version 1.8.0; S3's, SNS's and
// EventBridge's follow AWS's documentation, MinIO's its source. None of those was
// received from AWS or MinIO itself.
func TestEveryServersAnnouncementNamesItsObject(t *testing.T) {
	for _, c := range []struct {
		file string
		want []Object
	}{
		{"s3.json", []Object{{"hikyaku", "inbox/été 2026 (1).csv", "L4kqtJlcpXroDTDmpUMLUo"}, {"hikyaku", "inbox/%C3%A9t%C3%A9+2026+%281%29.csv", "L4kqtJlcpXroDTDmpUMLUo"}}},
		{"s3-unversioned.json", []Object{{"hikyaku", "inbox/people.csv", ""}}},
		{"s3-copy.json", []Object{{"hikyaku", "inbox/people.csv", ""}}},
		{"s3-several.json", []Object{{"hikyaku", "inbox/a.csv", ""}, {"hikyaku", "inbox/c.csv", ""}}},
		{"s3-removed.json", nil},
		{"s3-test.json", nil},
		{"sns.json", []Object{{"hikyaku", "inbox/a b.csv", ""}, {"hikyaku", "inbox/a+b.csv", ""}}},
		{"sns-test.json", nil},
		{"eventbridge.json", []Object{{"hikyaku", "inbox/100%+1 été.csv", "IYV3p45BT0ac8hjHg1houSdS1a.Mro8e"}}},
		{"eventbridge-deleted.json", nil},
		{"minio.json", []Object{{"hikyaku", "inbox/a b.csv", ""}, {"hikyaku", "inbox%2Fa+b.csv", ""}}},
		{"versitygw.json", []Object{{"hikyaku", "inbox/a b é.csv", ""}, {"hikyaku", "inbox/a+b é.csv", ""}}}, // the key is the second
		{"versitygw-test.json", nil},
	} {
		t.Run(c.file, func(t *testing.T) {
			body, err := os.ReadFile(filepath.Join("testdata", c.file))
			require.NoError(t, err)
			got, err := Parse(body)
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
}

func TestWhatIsNoAnnouncementIsSaidInWords(t *testing.T) {
	record := func(source, name, bucket, key string) string {
		return `{"Records":[{"eventSource":"` + source + `","eventName":"` + name + `","s3":{"bucket":{"name":"` + bucket + `"},"object":{"key":"` + key + `"}}}]}`
	}
	for _, c := range []struct{ name, body, want string }{
		{"nothing", ``, "no JSON object"},
		{"text", `people.csv`, "no JSON object"},
		{"a list", `[]`, "no JSON object"},
		{"half", `{"Records":[`, "no JSON object"},
		{"two", `{"Event":"s3:TestEvent"}{}`, "no JSON object"},
		{"null", `null`, "neither"},
		{"empty", `{}`, "neither"},
		{"another event", `{"Event":"s3:OtherEvent"}`, "neither"},
		{"no records", `{"Records":[]}`, "no records"},
		{"another source", record("aws:dynamodb", "INSERT", "b", "k"), "record 1 is not from S3"},
		{"no name", record("aws:s3", "", "b", "k"), "record 1 does not say what happened"},
		{"no bucket", record("aws:s3", "ObjectCreated:Put", "", "k"), "record 1 names no bucket"},
		{"no key", record("aws:s3", "ObjectCreated:Put", "b", ""), "record 1 has no key"},
		{"a key too long", record("aws:s3", "ObjectCreated:Put", "b", strings.Repeat("k", 1025)), "record 1 has no key"},
		{"a key with a NUL", record("aws:s3", "ObjectCreated:Put", "b", `\u0000`), "record 1 has no key"},
		{"SNS about something else", `{"Type":"Notification","Message":"the bill is paid"}`, "the SNS notification holds no JSON object"},
		{"SNS inside SNS", `{"Type":"Notification","Message":"{\"Type\":\"Notification\",\"Message\":\"{}\"}"}`, "neither"},
		{"SNS wants a confirmation", `{"Type":"SubscriptionConfirmation","Message":"You have chosen"}`, "neither"},
		{"EventBridge about something else", `{"source":"aws.ec2","detail-type":"Object Created"}`, "not about an object on S3"},
		{"EventBridge about a call", `{"source":"aws.s3","detail-type":"AWS API Call via CloudTrail"}`, "not about an object on S3"},
		{"EventBridge without bucket", `{"source":"aws.s3","detail-type":"Object Created","detail":{"object":{"key":"k"}}}`, "names no bucket"},
		{"EventBridge without key", `{"source":"aws.s3","detail-type":"Object Created","detail":{"bucket":{"name":"b"}}}`, "no key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Parse([]byte(c.body))
			require.ErrorContains(t, err, c.want)
			require.Empty(t, got)
		})
	}
}

func TestBothReadingsOfAKeyAreLookedAt(t *testing.T) {
	for _, c := range []struct {
		sent string
		want []string
	}{
		{"a.csv", []string{"a.csv"}},
		{"a+b.csv", []string{"a b.csv", "a+b.csv"}},
		{"a%2Bb.csv", []string{"a+b.csv", "a%2Bb.csv"}},
		{"100%.csv", []string{"100%.csv"}}, // no encoding has this
		{"%FF.csv", []string{"%FF.csv"}},   // no UTF-8 once decoded
		{"%00", []string{"%00"}},
		{strings.Repeat("%E3%81%82", 341), []string{strings.Repeat("あ", 341)}}, // too long only as it was sent
	} {
		require.Equal(t, c.want, readings(c.sent), c.sent)
	}
}

func FuzzAnnouncementNamesKeysThatCanBe(f *testing.F) {
	files, err := filepath.Glob("testdata/*.json")
	require.NoError(f, err)
	require.NotEmpty(f, files)
	for _, name := range files {
		body, err := os.ReadFile(name)
		require.NoError(f, err)
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		objects, err := Parse(body)
		if err != nil {
			require.Empty(t, objects)
			require.True(t, utf8.ValidString(err.Error()))
			return
		}
		for _, o := range objects {
			require.NotEmpty(t, o.Bucket)
			require.True(t, possible(o.Key))
			require.NotEqual(t, "null", o.VersionID)
		}
	})
}
