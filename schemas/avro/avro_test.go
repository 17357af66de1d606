package avro_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/avro"
)

// FULL_TRANSITIVE, for what is released.
func TestEveryVersionReadsEveryOther(t *testing.T) {
	t.Parallel()
	versions, err := avro.Versions(avro.Files())
	require.NoError(t, err)
	require.NotEmpty(t, versions)
	for _, fault := range avro.Compatible(versions) {
		t.Error(fault)
	}
}

// person makes a record of the fields, one per line.
func person(fields ...string) string {
	return `{"type":"record","name":"Person","namespace":"hikyaku","fields":[` + strings.Join(fields, ",") + `]}`
}

const (
	id      = `{"name":"id","type":"string"}`
	age     = `{"name":"age","type":"int"}`
	ageLong = `{"name":"age","type":"long"}`
	city    = `{"name":"city","type":"string","default":""}`
)

func pets(item string) string {
	return `{"name":"pets","type":{"type":"array","items":{"type":"record","name":"Pet","fields":[` + item + `]}}}`
}

func TestCompatible(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		versions []string
		faults   []string // in any order; a part of each
	}{
		"the same":                       {[]string{person(id), person(id)}, nil},
		"other order, docs and defaults": {[]string{person(id, city), person(`{"name":"city","type":"string","default":"Kyoto","doc":"home"}`, id)}, nil},
		"new field with default":         {[]string{person(id), person(id, city)}, nil},
		"new field with null default":    {[]string{person(id), person(id, `{"name":"age","type":["null","int"],"default":null}`)}, nil},
		"new field without default":      {[]string{person(id), person(id, age)}, []string{"person.v1.avsc cannot be read with person.v2.avsc: .age: not written"}},
		"field with default removed":     {[]string{person(id, city), person(id)}, nil},
		"field without default removed":  {[]string{person(id, age), person(id)}, []string{"person.v2.avsc cannot be read with person.v1.avsc: .age: not written"}},
		"renamed":                        {[]string{person(id), person(`{"name":"user_id","type":"string"}`)}, []string{".user_id: not written", ".id: not written"}},
		"int became long":                {[]string{person(age), person(ageLong)}, []string{"v2.avsc cannot be read with person.v1.avsc: .age: long became int"}},
		"long became string":             {[]string{person(ageLong), person(`{"name":"age","type":"string"}`)}, []string{"long became string", "string became long"}},
		"string became bytes":            {[]string{person(id), person(`{"name":"id","type":"bytes"}`)}, nil},
		"string may now be null":         {[]string{person(id), person(`{"name":"id","type":["null","string"]}`)}, []string{"v2.avsc cannot be read with person.v1.avsc: .id: null became string"}},
		"union gained a branch": {[]string{person(`{"name":"v","type":["null","string"]}`), person(`{"name":"v","type":["null","string","boolean"]}`)},
			[]string{"v2.avsc cannot be read with person.v1.avsc: .v: no branch for boolean"}},
		"union in another order": {[]string{person(`{"name":"v","type":["null","string"]}`), person(`{"name":"v","type":["string","null"]}`)}, nil},
		"long became a time": {[]string{person(ageLong), person(`{"name":"age","type":{"type":"long","logicalType":"timestamp-micros"}}`)},
			[]string{"long became timestamp-micros", "timestamp-micros became long"}},
		"a time became a double": {[]string{person(`{"name":"at","type":{"type":"long","logicalType":"timestamp-micros"}}`), person(`{"name":"at","type":"double"}`)},
			[]string{"timestamp-micros became double", "double became timestamp-micros"}},
		"id grew": {[]string{person(`{"name":"id","type":{"type":"fixed","name":"ID","size":8}}`), person(`{"name":"id","type":{"type":"fixed","name":"ID","size":16}}`)},
			[]string{"ID of 8 bytes became hikyaku.ID of 16", "ID of 16 bytes became hikyaku.ID of 8"}},
		"inside an array, with default":    {[]string{person(pets(id)), person(pets(id + "," + city))}, nil},
		"inside an array, without default": {[]string{person(pets(id)), person(pets(id + "," + age))}, []string{".pets[].age: not written"}},
		"array became its item":            {[]string{person(pets(id)), person(`{"name":"pets","type":"string"}`)}, []string{"array became string", "string became array"}},
		"transitive: gone in v2, back as another type in v3": {[]string{person(id, city), person(id), person(id, `{"name":"city","type":"long","default":0}`)},
			[]string{"v1.avsc cannot be read with person.v3.avsc: .city: string became long", "v3.avsc cannot be read with person.v1.avsc: .city: long became string"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder := fstest.MapFS{"other.v1.avsc": {Data: []byte(`{"type":"record","name":"Other","fields":[` + age + `]}`)}}
			for i, text := range c.versions {
				folder[fmt.Sprintf("person.v%d.avsc", i+1)] = &fstest.MapFile{Data: []byte(text)}
			}
			versions, err := avro.Versions(folder)
			require.NoError(t, err)
			faults := avro.Compatible(versions)
			require.Len(t, faults, len(c.faults), "%v", faults)
			for _, want := range c.faults {
				require.Contains(t, fmt.Sprint(faults), want)
			}
		})
	}
}

func TestLostAndStrangeFilesAreRefused(t *testing.T) {
	t.Parallel()
	good := &fstest.MapFile{Data: []byte(person(id))}
	for _, folder := range []fstest.MapFS{
		{"person.v2.avsc": good},
		{"person.v1.avsc": good, "person.v3.avsc": good},
		{"person.v0.avsc": good},
		{"person.avsc": good},
		{"person.v1.avsc": {Data: []byte(`{`)}},
		{"person.v1.avsc": {Data: []byte(person(id, id))}},
		{"person.v1.avsc": {Data: []byte(person(`{"name":"m","type":{"type":"map","values":"string"}}`))}},
		{"person.v1.avsc": {Data: []byte(person(`{"name":"m","type":{"type":"enum","name":"E","symbols":["A"]}}`))}},
		{"person.v1.avsc": {Data: []byte(person(`{"name":"m","type":"Person"}`))}},
		{"person.v1.avsc": {Data: []byte(person(`{"name":"m"}`))}},
	} {
		_, err := avro.Versions(folder)
		require.Error(t, err, "%v", folder)
	}
	versions, err := avro.Versions(fstest.MapFS{"b.v1.avsc": good, "a.v2.avsc": good, "a.v1.avsc": good})
	require.NoError(t, err)
	var latest []string
	for _, v := range avro.Latest(versions) {
		latest = append(latest, v.File())
	}
	require.Equal(t, []string{"a.v2.avsc", "b.v1.avsc"}, latest)
}
