package importfile

import (
	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/services/internal/importfile/mapping"
	"github.com/hikyaku/hikyaku/services/internal/importfile/pinpoint"
	"github.com/hikyaku/hikyaku/services/internal/liquid"
)

// Mapper makes records of the rows of one import. It is for one goroutine.
type Mapper interface {
	// Row maps the row that begins at line, the file's record-th (from 1, rejected rows
	// counted). The records are valid until the next call.
	Row(fields []string, line, record int64) (mapping.Records, *mapping.Reject)
}

// Compile fits a spec, one of those that are built in among them, to a file's header. The error
// names everything that the file lacks, and means that no row of it can be mapped.
func Compile(engine *liquid.Engine, spec *definition.ImportSpec, header []string, imp mapping.Import) (Mapper, error) {
	if spec.Source.Format == pinpoint.Format {
		return pinpoint.Compile(spec, header, imp)
	}
	return mapping.Compile(engine, spec, header, imp)
}
