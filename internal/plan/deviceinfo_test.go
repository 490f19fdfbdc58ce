package plan

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadDeviceInfo(t *testing.T) {
	dir := t.TempDir()
	const info = `{"type":"pci","pci":{"pci-address":"0000:21:00.1"}}`
	for name, content := range map[string]string{
		"object": info, "cut": info[:20], "null": "null", "list": "[]", "empty": "", "large": info + strings.Repeat(" ", maxDeviceInfo),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"object", "cut", "null", "list", "empty", "large", "pipe", "absent", "."} {
		want := map[string]string{"object": info}[name]
		if got := string(ReadDeviceInfo(filepath.Join(dir, name))); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got := ReadDeviceInfo(""); got != nil {
		t.Errorf("without a name: %q", got)
	}
}
