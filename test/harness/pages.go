package harness

import (
	"os"
	"path/filepath"
	"regexp"
)

var commands = regexp.MustCompile("(?s)```sh\n(.*?)```")

// Commands returns the blocks of commands of a page of docs/, in order: what a
// reader is to run, and so what a test of the page runs.
func Commands(page string) ([]string, error) {
	root, err := ModuleRoot()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(root, "docs", page))
	var blocks []string
	for _, b := range commands.FindAllStringSubmatch(string(text), -1) {
		blocks = append(blocks, b[1])
	}
	return blocks, err
}
