package alone

import (
	"os/exec"
	"runtime"
	"testing"
)

func TestOneProcessor(t *testing.T) {
	if n := runtime.GOMAXPROCS(0); n != 1 {
		t.Errorf("%d processors", n)
	}
	if runtime.MemProfileRate != 0 {
		t.Errorf("memory is profiled, every %d bytes", runtime.MemProfileRate)
	}
}

// An import of another package would be initialized before this one.
func TestImportsTheRuntimeAlone(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{join .Imports \" \"}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := string(out); got != "runtime\n" {
		t.Errorf("it imports %s", got)
	}
}
