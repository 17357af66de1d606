package pinpoint_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/services/internal/importfile"
	"github.com/hikyaku/hikyaku/services/internal/importfile/mapping"
	"github.com/hikyaku/hikyaku/services/internal/importfile/pinpoint"
	"github.com/hikyaku/hikyaku/services/internal/liquid"
)

var (
	imported = mapping.Import{ID: identity.Hash("an import"), StartedAt: time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC), LastModified: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
	engine   = liquid.New(liquid.Options{})
)

// read reads a file as the importer does: what each row makes, or why it is rejected.
func read(t testing.TB, segment string, data []byte) (out []string, err error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, data, 0o600))
	source, err := importfile.OpenLocal(path)
	require.NoError(t, err)
	defer source.Close()
	spec := pinpoint.Spec(segment)
	f, err := importfile.Open(engine, spec, source, importfile.Position{})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, err := importfile.Compile(engine, spec, f.Header(), imported)
	if err != nil {
		return nil, err
	}
	for n := int64(1); ; n++ {
		row, err := f.Next()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		if row.Malformed != nil {
			out = append(out, "malformed: "+row.Malformed.Reason)
			continue
		}
		made, reject := m.Row(row.Fields, row.Line, n)
		if reject != nil {
			out = append(out, reject.Column+": "+reject.Reason)
			continue
		}
		require.Nil(t, made.Event)
		out = append(out, text(t, &made))
	}
}

// text writes what a row makes on one line.
func text(t testing.TB, made *mapping.Records) string {
	p := made.Patch
	require.Equal(t, made.UserID, p.UserID)
	require.Equal(t, imported.LastModified, p.OccurredAt)
	require.Equal(t, "import:"+imported.ID.String(), p.SetBy)
	out := []string{p.UserID}
	for _, a := range p.Addresses {
		out = append(out, "<"+a.Channel+" "+a.Address+">")
	}
	for _, c := range p.Consents {
		out = append(out, "("+c.Channel+" "+c.Consent+")")
	}
	if p.Locale != nil {
		out = append(out, "locale="+*p.Locale)
	}
	if p.TimeZone != nil {
		out = append(out, "zone="+*p.TimeZone)
	}
	if made.Member != nil {
		require.Equal(t, made.UserID, made.Member.UserID)
		out = append(out, "in "+made.Member.SegmentID)
	}
	for _, v := range p.Set {
		value := fmt.Sprintf("%q", v.Value.Text())
		if k := v.Value.Kind(); k != event.KindString {
			value = fmt.Sprintf("%s %s", k, v.Value)
		}
		out = append(out, v.Name+"="+value)
	}
	return strings.Join(out, " ")
}

func TestCSVAndJSONOfOneAudienceMakeTheSame(t *testing.T) {
	t.Parallel()
	const csv = "ChannelType,Address,Id,OptOut,EndpointStatus,EffectiveDate,Location.City,Location.Latitude,Demographic.Locale,Demographic.Timezone,Demographic.PlatformVersion," +
		"Attributes.Team,Metrics.Orders,User.UserId, User.UserAttributes.Interests,User.UserAttributes.Interests,User.UserAttributes.FirstName\n" +
		"EMAIL,aiko@example.test,e1,NONE,ACTIVE,2025-02-12T11:20:13.627Z,Kyoto,35.0,ja_JP,Asia/Tokyo,17.1,Tigers,12,u1,Science,\"Music, old\",Aiko\n" +
		"SMS,+16045550182,e2,ALL,ACTIVE,,,,,,,,,u1,,,\n" +
		"EMAIL,ben@example.test,e3,ALL,ACTIVE,,,,,GMT+09:00,,,0.5,,Travel,,Ben\n" +
		"EMAIL,old@example.test,e4,NONE,INACTIVE,,,,,,,,,u4,,,\n" +
		"EMAIL,cy@example.test,,,,,,,,,,,,,,,Cy\n"
	const jsonl = `{"ChannelType":"EMAIL","Address":"aiko@example.test","EndpointStatus":"ACTIVE","OptOut":"NONE","Location":{"City":"Kyoto","Latitude":35.0},"Demographic":{"Locale":"ja_JP","Timezone":"Asia/Tokyo","PlatformVersion":"17.1"},"EffectiveDate":"2025-02-12T11:20:13.627Z","Attributes":{"Team":["Tigers"]},"Metrics":{"Orders":12},"User":{"UserId":"u1","UserAttributes":{"Interests":["Science","Music, old"],"FirstName":["Aiko"]}},"ApplicationId":"9b74","CohortId":"31","Id":"e1","CreationDate":"2025-02-12T11:20:13.627Z","RequestId":"r"}
{"ChannelType":"SMS","Address":"+16045550182","Id":"e2","OptOut":"ALL","EndpointStatus":"ACTIVE","User":{"UserId":"u1"}}
{"ChannelType":"EMAIL","Address":"ben@example.test","Id":"e3","OptOut":"ALL","Metrics":{"Orders":0.5},"Demographic":{"Timezone":"GMT+09:00"},"User":{"UserAttributes":{"Interests":["","Travel",null],"FirstName":"Ben","Age":[]}}}
{"ChannelType":"EMAIL","Address":"old@example.test","Id":"e4","OptOut":"NONE","EndpointStatus":"INACTIVE","User":{"UserId":"u4"},"Attributes":{}}

{"ChannelType":"EMAIL","Address":"cy@example.test","User":{"UserAttributes":{"FirstName":["Cy"]}}}
`
	want := []string{
		`u1 <email aiko@example.test> locale=ja-JP zone=Asia/Tokyo in vip FirstName="Aiko" Interests=json ["Science","Music, old"] Orders=float 12 Team="Tigers" demographic_platform_version="17.1" location_city="Kyoto" location_latitude=float 35`,
		`u1 in vip pinpoint_sms="+16045550182" pinpoint_sms_opt_out=bool true`,
		`e3 <email ben@example.test> (email unsubscribed) in vip FirstName="Ben" Interests="Travel" Orders=float 0.5 demographic_timezone="GMT+09:00"`,
		`u4 in vip pinpoint_email_inactive="old@example.test"`,
		`cy@example.test <email cy@example.test> in vip FirstName="Cy"`,
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, err := io.WriteString(z, jsonl)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	for name, data := range map[string][]byte{"csv": []byte(csv), "marked": []byte("\xef\xbb\xbf" + csv), "json": []byte(jsonl), "marked json": []byte("\xef\xbb\xbf" + jsonl), "gzip": zipped.Bytes()} {
		got, err := read(t, "vip", data)
		require.NoError(t, err, name)
		require.Equal(t, want, got, name)
	}
}

// The examples of the user guide, of which the fourth and fifth are about one person.
func TestTheExamplesOfPinpointsGuideAreRead(t *testing.T) {
	t.Parallel()
	got, err := read(t, "", []byte("ChannelType,Address,Location.Country,Demographic.Platform,Demographic.Make,User.UserId\n"+
		"SMS,+16045550182,CA,Android,LG,example-user-id-1\nAPNS,1a2b3c4d,US,iOS,Apple,example-user-id-2\nEMAIL,john.stiles@example.com,US,iOS,Apple,example-user-id-2\n"))
	require.NoError(t, err)
	require.Equal(t, []string{
		`example-user-id-1 demographic_make="LG" demographic_platform="Android" location_country="CA" pinpoint_sms="+16045550182"`,
		`example-user-id-2 demographic_make="Apple" demographic_platform="iOS" location_country="US" pinpoint_apns="1a2b3c4d"`,
		`example-user-id-2 <email john.stiles@example.com> demographic_make="Apple" demographic_platform="iOS" location_country="US"`,
	}, got)
}

func TestARowIsTakenOrRejectedWithItsReason(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 129)
	for in, want := range map[string]string{
		`{"User":{"UserId":"u"}}`:   `u`,
		`{"Id":"e","OptOut":"ALL"}`: `e (email unsubscribed)`,
		`{"Id":"e","OptOut":"all","ChannelType":"email","Address":" a@b"}`:                                 `e <email a@b> (email unsubscribed)`,
		`{"Id":"e","ChannelType":"APNS_SANDBOX","Address":"t","EndpointStatus":"INACTIVE","OptOut":"ALL"}`: `e pinpoint_apns_sandbox_inactive="t" pinpoint_apns_sandbox_opt_out=bool true`,
		`{"Id":["e"],"Address":null}`:                        `e`,
		`{"Id":"a","Id":"b","Attributes":{"x":"1","x":"2"}}`: `b x="2"`,

		// What is unknown is kept, too.
		`{"Id":"e","New":{"Part":[1,"a"]},"Extra":true,"Demographic":{"AppVersion":2}}`: `e demographic_app_version=int 2 pinpoint_extra=bool true pinpoint_new_part=json [1,"a"]`,
		`{"Id":"e","Attributes":{"a":{"b":["c"]},"n":[[1]]}}`:                           `e a.b="c" n=json [[1]]`,
		// Of two of one name none is lost, and the user's has it.
		`{"Id":"e","User":{"UserAttributes":{"Age":["35"],"City":["Rome"]}},"Attributes":{"Age":["36"],"City":["Rome"]},"Metrics":{"Age":37}}`: `e Age="35" Attributes.Age="36" City="Rome" Metrics.Age=float 37`,
		`{"Id":"e","Attributes":{"pinpoint_sms":["mine"]},"ChannelType":"SMS","Address":"+1"}`:                                                 `e Attributes.pinpoint_sms="mine" pinpoint_sms="+1"`,

		`{"User":{"UserAttributes":{"Age":["35"]}}}`:             `User.UserId: the row has none of User.UserId, Id and Address`,
		`{"User":{"UserId":"` + strings.Repeat("x", 513) + `"}}`: `User.UserId: the user_id is longer than 512 bytes`,
		`{"Id":["a","b"]}`:                                                            `Id: more than one value`,
		`{"Id":"e","Address":"a@b"}`:                                                  `ChannelType: the row has an Address and no ChannelType`,
		`{"Id":"e","ChannelType":"E-MAIL"}`:                                           `ChannelType: not the name of a channel`,
		`{"Id":"e","OptOut":"SOME"}`:                                                  `OptOut: neither ALL nor NONE`,
		`{"Id":"e","EndpointStatus":"GONE"}`:                                          `EndpointStatus: neither ACTIVE nor INACTIVE`,
		`{"Id":"e","Metrics":{"n":"many"}}`:                                           `Metrics.n: not a number`,
		`{"Id":"e","Metrics":{"n":[1,2]}}`:                                            `Metrics.n: not a number`,
		`{"Id":"e","Attributes":{"n":1e999}}`:                                         `Attributes.n: not a number`,
		`{"Id":"e","Location":{"Latitude":"north"}}`:                                  `Location.Latitude: not a number`,
		`{"Id":"e","Attributes":{"` + long + `":"1"}}`:                                `Attributes.` + long[:117] + `…: the name of an attribute has 1 to 128 characters`,
		`{"Id":"e","Attributes":{"":"1"}}`:                                            `Attributes.: the name of an attribute has 1 to 128 characters`,
		strings.Repeat(`{"Id":`, 10) + "1" + strings.Repeat("}", 10):                  `User.UserId: the row has none of User.UserId, Id and Address`,
		`{"Id":"e","A":` + strings.Repeat(`{"b":`, 9) + "1" + strings.Repeat("}", 10): `e pinpoint_a_b_b_b_b_b_b_b=json {"b":{"b":1}}`,
		`{"Id":`: `malformed: the line is not JSON`,
	} {
		got, err := read(t, "", []byte(in+"\n"))
		require.NoError(t, err, in)
		require.Equal(t, []string{want}, got, in)
	}
	got, err := read(t, "", []byte("Id,Attributes.x\na,1,2\nb,1\nc,\"\"\n"))
	require.NoError(t, err)
	require.Equal(t, []string{": the row has 3 columns, the header has 2", `b x="1"`, "c"}, got)
}

func TestAFileThatCannotBeOnesFailsWithItsReason(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ segment, in, want string }{
		{"", "id,email\n1,a@b\n", "none of User.UserId, Id and Address"},
		{"", "Id,ChannelType,Address,Address\n1,EMAIL,a,b\n", `the column "Address" more than once`},
		{"VIP", "Id\n1\n", `the folder "VIP" cannot name a segment`},
		{"", `[{"Id":"e"}]`, "JSON Lines have one object on each line"},
	} {
		_, err := read(t, c.segment, []byte(c.in))
		require.ErrorContains(t, err, c.want)
	}
}

func TestTheFirstFolderNamesTheSegment(t *testing.T) {
	t.Parallel()
	for key, want := range map[string]string{"part-0.csv": "", "vip/part-0.csv": "vip", "vip/2026/11/part-0.gz": "vip", "": ""} {
		require.Equal(t, want, pinpoint.Segment(key), key)
	}
}

func TestNamesTellASegmentFile(t *testing.T) {
	t.Parallel()
	for names, want := range map[string]bool{
		"ChannelType,Address": true, "Id,ChannelType": true, "User.UserId,User.UserAttributes.Age": true,
		"id,address": false, "Address,Id,Name": false, "ChannelType": false, "User.UserId,name": false,
	} {
		require.Equal(t, want, pinpoint.Recognises(strings.Split(names, ",")), names)
	}
}

// Whatever the bytes: no panic, and names that are there once and in their order.
func FuzzRow(f *testing.F) {
	f.Add([]byte(`{"ChannelType":"EMAIL","Address":"a@b","Id":"e","User":{"UserAttributes":{"a":["1","2"]}},"Attributes":{"a":[1],"a":{"a":null}},"Metrics":{"a":1e3}}`))
	f.Add([]byte("Id,ChannelType,Address, Attributes.a,Attributes.a,User.UserAttributes.a,Metrics.a\ne,SMS,+1,1,2,3,4\n"))
	spec := pinpoint.Spec("vip")
	f.Fuzz(func(t *testing.T, data []byte) {
		source := &memory{Reader: bytes.NewReader(data)}
		file, err := importfile.Open(engine, spec, source, importfile.Position{})
		if err != nil {
			return
		}
		defer file.Close()
		m, err := importfile.Compile(engine, spec, file.Header(), imported)
		if err != nil {
			return
		}
		for {
			row, err := file.Next()
			if err != nil {
				return
			}
			if row.Malformed != nil {
				continue
			}
			made, reject := m.Row(row.Fields, row.Line, 1)
			if reject != nil {
				require.NotEmpty(t, reject.Reason)
				continue
			}
			require.NotEmpty(t, made.UserID)
			names := map[string]bool{}
			for _, v := range made.Patch.Set {
				require.NotEmpty(t, v.Name)
				require.False(t, v.Value.IsNull())
				names[v.Name] = true
			}
			require.Len(t, names, len(made.Patch.Set))
			require.True(t, slices.IsSortedFunc(made.Patch.Set, func(a, b event.NamedValue) int { return strings.Compare(a.Name, b.Name) }), "%v", slices.Collect(maps.Keys(names)))
		}
	})
}

// memory is a file in memory.
type memory struct{ *bytes.Reader }

func (m *memory) Go(to int64) { _, _ = m.Seek(to, io.SeekStart) }

func (m *memory) At() int64 { return m.Reader.Size() - int64(m.Len()) }

func BenchmarkRow(b *testing.B) {
	const csv = "EMAIL,aiko@example.test,e1,NONE,Kyoto,ja_JP,Asia/Tokyo,u1,Aiko,tea,pottery,12"
	const json = `{"ChannelType":"EMAIL","Address":"aiko@example.test","Id":"e1","OptOut":"NONE","Location":{"City":"Kyoto"},"Demographic":{"Locale":"ja_JP","Timezone":"Asia/Tokyo"},"User":{"UserId":"u1","UserAttributes":{"FirstName":["Aiko"],"Interests":["tea","pottery"]}},"Metrics":{"Orders":12}}`
	header := "ChannelType,Address,Id,OptOut,Location.City,Demographic.Locale,Demographic.Timezone,User.UserId,User.UserAttributes.FirstName,User.UserAttributes.Interests,User.UserAttributes.Interests,Metrics.Orders"
	for name, c := range map[string]struct{ header, fields []string }{
		"CSV": {strings.Split(header, ","), strings.Split(csv, ",")}, "JSON": {[]string{pinpoint.Object}, []string{json}},
	} {
		b.Run(name, func(b *testing.B) {
			m, err := pinpoint.Compile(pinpoint.Spec("vip"), c.header, imported)
			require.NoError(b, err)
			b.ReportAllocs()
			for b.Loop() {
				if _, reject := m.Row(c.fields, 2, 1); reject != nil {
					b.Fatal(reject)
				}
			}
		})
	}
}
