//go:build apiserver

package kubectl

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// pictureDir holds a picture of each command, for the reference page.
var pictureDir = filepath.Join("..", "..", "docs", "kubectl")

// cmdPicture runs the commands of the last block again, on a terminal, and compares
// the screen with docs/kubectl/NAME.svg: "picture NAME".
func cmdPicture(ts *testscript.TestScript, _ bool, args []string) {
	p := pages[of(ts)]
	var screen strings.Builder
	for _, line := range typed(p.blocks[p.next-1].commands) {
		screen.WriteString("$ " + line + "\n" + onTerminal(ts, here(ts, line)))
	}
	drawn, err := draw("kubectl manifold "+args[0], steady(ts, screen.String()))
	ts.Check(err)
	file := filepath.Join(pictureDir, args[0]+".svg")
	if *update {
		ts.Check(os.WriteFile(file, []byte(drawn), 0o644))
	}
	have, err := os.ReadFile(file)
	ts.Check(err)
	if string(have) != drawn {
		ts.Fatalf("%s is not what the terminal shows:\n%s\nrun: go test -tags apiserver ./test/kubectl -update", file, screen.String())
	}
}

// typed returns the commands of a block, without those that only write a file.
func typed(commands string) (out []string) {
	heredoc := false
	for line := range strings.Lines(commands) {
		switch line = strings.TrimSuffix(line, "\n"); {
		case heredoc:
			heredoc = line != "EOF"
		case strings.HasSuffix(line, "<<EOF"):
			heredoc = true
		default:
			out = append(out, line)
		}
	}
	return out
}

// onTerminal runs a command on a terminal and returns the terminal's output. It
// ignores the command's status, which cmdBlock has checked.
func onTerminal(ts *testscript.TestScript, command string) string {
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	ts.Check(err)
	defer screen.Close()
	number, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	ts.Check(err)
	ts.Check(unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0))
	name := "/dev/pts/" + strconv.Itoa(number)
	keyboard, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	ts.Check(err)
	read := make(chan string)
	go func() {
		text, _ := io.ReadAll(screen) // ends with EIO once nobody has the terminal open
		read <- string(text)
	}()
	_ = ts.Exec("sh", "-c", "exec >"+name+" 2>&1; "+command) // lint fails: it finds something
	ts.Check(keyboard.Close())
	return strings.ReplaceAll(<-read, "\r\n", "\n")
}

// Dimensions of a picture, in pixels.
const (
	letter = 7.8 // width of a letter at a font size of 13
	height = 18  // of a line
	margin = 14
)

// colours maps the color codes that the commands use to those of a dark screen.
var colours = map[string]string{"0": "#d8dee9", "31": "#ff7b72", "32": "#7ee787"}

// colour matches a color change for a terminal; code 0 is plain text.
var colour = regexp.MustCompile("\x1b\\[([0-9]+)m")

// draw draws a screen as SVG. Terminal controls other than colors and lines are an
// error, because the picture would lack them.
func draw(title, screen string) (string, error) {
	lines := strings.Split(strings.TrimRight(screen, "\n"), "\n")
	widest := 0
	for _, line := range lines {
		widest = max(widest, length(line))
	}
	width, tall := int(float64(widest)*letter)+2*margin, len(lines)*height+2*margin
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="monospace" font-size="13">`+"\n<title>%s</title>\n", width, tall, title)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" rx="6" fill="#1c2128"/>`+"\n", width, tall)
	for i, line := range lines {
		spans, err := spans(line)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" textLength="%.1f" xml:space="preserve">%s</text>`+"\n", margin, margin+height*i+13, float64(length(line))*letter, spans)
	}
	return b.String() + "</svg>\n", nil
}

// length returns the number of letters that a line shows.
func length(line string) int { return utf8.RuneCountInString(colour.ReplaceAllString(line, "")) }

// spans returns the parts of a line, each in its color.
func spans(line string) (string, error) {
	var b strings.Builder
	number, from := "0", 0
	for _, m := range append(colour.FindAllStringSubmatchIndex(line, -1), []int{len(line), len(line), 0, 0}) {
		text, fill := line[from:m[0]], colours[number]
		if fill == "" || strings.ContainsFunc(text, unicode.IsControl) {
			return "", fmt.Errorf("%q in colour %q cannot be drawn", text, number)
		}
		if text != "" {
			fmt.Fprintf(&b, `<tspan fill="%s">%s</tspan>`, fill, strings.NewReplacer("&", "&amp;", "<", "&lt;").Replace(text))
		}
		number, from = line[m[2]:m[3]], m[1]
	}
	return b.String(), nil
}

// Every command that shows something of a node has a picture on the reference page.
func TestEveryCommandHasAPicture(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "kubectl.md"))
	if err != nil {
		t.Fatal(err)
	}
	var wanted []string
	for _, name := range names(t, filepath.Join("..", "..", "docs", "man")) {
		command, _ := strings.CutPrefix(strings.TrimSuffix(name, ".1"), "kubectl-manifold-")
		if command == "kubectl-manifold" || command == "options" {
			continue // they print help
		}
		wanted = append(wanted, command+".svg")
		if !strings.Contains(string(page), "](kubectl/"+command+".svg)") {
			t.Errorf("docs/kubectl.md does not show kubectl/%s.svg", command)
		}
	}
	if have := names(t, pictureDir); !slices.Equal(have, wanted) {
		t.Errorf("there are pictures %v, and the commands are %v", have, wanted)
	}
}
