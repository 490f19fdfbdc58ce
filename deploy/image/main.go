// Command image builds Manifold's image without a container builder: the static programs
// for each architecture, a bill of materials, and an OCI archive of both that any runtime
// can import.
//
//	image archive FILE   builds all architectures into an OCI archive
//	image root DIR       builds the files of one architecture's image into DIR
//
// It runs in the root of the repository. The Dockerfile runs "image root", so both ways
// produce the same files. Two builds of one commit with one release of Go are identical
// byte for byte: nothing in them tells when or where they were built.
//
// It is a separate module so that its dependencies stay out of Manifold's.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// build is what an image is stamped with.
type build struct {
	release  string    // of the programs and the image
	revision string    // the commit
	created  time.Time // the commit's time, which every file gets
	name     string    // full name of the image, with its tag
	arches   []string
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("image", flag.ExitOnError)
	var b build
	flags.StringVar(&b.release, "release", "unreleased", "`release` that the programs report")
	flags.StringVar(&b.revision, "revision", "unknown", "`commit` that they are built from")
	flags.StringVar(&b.name, "name", "docker.io/manifold-cni/manifold:latest", "full `name` of the image in the archive")
	created := flags.Int64("created", 0, "`seconds` since 1970 of that commit")
	arches := flags.String("arch", runtime.GOARCH, "comma-separated `architectures`")
	if len(args) == 0 {
		return fmt.Errorf("usage: image archive [flags] FILE | image root [flags] DIR")
	}
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return fmt.Errorf("need one path, got %d", flags.NArg())
	}
	b.created, b.arches = time.Unix(*created, 0).UTC(), strings.Split(*arches, ",")
	switch args[0] {
	case "archive":
		return b.archive(flags.Arg(0))
	case "root":
		return b.root(flags.Arg(0), b.arches[0])
	}
	return fmt.Errorf("unknown command %q", args[0])
}
