package lifecycle

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

func TestGarbageMayBe64MiBOrAsMuchAsIsAlive(t *testing.T) {
	for alive, want := range map[uint64]int{
		0: 1600, 4 << 20: 1600, 16 << 20: 400, 32 << 20: 200, 64 << 20: 100, 4 << 30: 100,
	} {
		if got := garbagePercent(alive); got != want {
			t.Errorf("with %d MiB alive %d %%, want %d", alive>>20, got, want)
		}
	}
}

func TestThePercentageFollowsWhatIsAlive(t *testing.T) {
	t.Setenv("GOGC", "")
	t.Setenv("GOMEMLIMIT", "")
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	percent := func() uint64 {
		now := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		metrics.Read(now)
		return now[0].Value.Uint64()
	}
	letGarbageGather()
	if p := percent(); p != 1600 {
		t.Fatalf("at the start %d %%, want 1600", p)
	}
	kept := make([]byte, 64<<20)
	defer runtime.KeepAlive(kept)
	for deadline := time.Now().Add(time.Minute); percent() != 100; {
		if time.Now().After(deadline) {
			t.Fatalf("%d %% with 64 MiB alive, want 100", percent())
		}
		runtime.GC()
	}
}

func TestTheEnvironmentDecidesAboutGarbage(t *testing.T) {
	t.Setenv("GOGC", "150")
	defer debug.SetGCPercent(debug.SetGCPercent(150))
	letGarbageGather()
	if p := debug.SetGCPercent(150); p != 150 {
		t.Fatalf("%d %% although GOGC is set", p)
	}
}
