package harness

import (
	"os"
	"path/filepath"
	"regexp"
)

// commands matches a block of commands in a page.
var commands = regexp.MustCompile("(?s)```sh\n(.*?)```")

// Commands returns the command blocks of a page of docs/ in order. A test of the page
// runs exactly what a reader would.
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
