package lifecycle

import (
	"os"
	"os/exec"
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

// alone says whether the test has its process to itself, and if not runs it in one: what
// letGarbageGather begins goes on for as long as the process.
func alone(t *testing.T) bool {
	t.Helper()
	const child = "LIFECYCLE_TEST_ALONE"
	if os.Getenv(child) != "" {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.v", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), child+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	return false
}

func TestThePercentageFollowsWhatIsAlive(t *testing.T) {
	t.Setenv("GOGC", "")
	t.Setenv("GOMEMLIMIT", "")
	if !alone(t) {
		return
	}
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
	if !alone(t) {
		return
	}
	letGarbageGather()
	if p := debug.SetGCPercent(150); p != 150 {
		t.Fatalf("%d %% although GOGC is set", p)
	}
}
