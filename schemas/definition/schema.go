package definition

import "embed"

//go:embed *.schema.json
var schemas embed.FS

// Schema returns the JSON Schema (2020-12) of a kind, or of "Filter", which the one of Audience refers to as filter.schema.json. It is nil
// for an unknown kind. A schema judges the shape of a document; Load also judges what it means.
func Schema(kind string) []byte {
	name, ok := map[string]string{
		KindImportSpec: "import-spec", KindAudience: "audience", KindTemplate: "template", KindCampaign: "campaign", KindExport: "export",
		"Filter": "filter",
	}[kind]
	if !ok {
		return nil
	}
	b, err := schemas.ReadFile(name + ".schema.json")
	if err != nil {
		return nil
	}
	return b
}
