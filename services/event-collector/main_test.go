package collector

import (
	"os"
	"testing"

	"github.com/hikyaku/hikyaku/services/internal/clickhouse/clickhousetest"
)

func TestMain(m *testing.M) { os.Exit(clickhousetest.Main(m)) }
