package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// archive builds the image of every architecture and writes all of them into one file.
func (b *build) archive(file string) (err error) {
	work, err := os.MkdirTemp("", "manifold-image-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range b.arches {
		root := filepath.Join(work, "root-"+arch)
		if err := b.root(root, arch); err != nil {
			return err
		}
		image, err := b.image(root, arch)
		if err != nil {
			return fmt.Errorf("image for %s: %w", arch, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	dir := filepath.Join(work, "layout")
	path, err := layout.Write(dir, mutate.IndexMediaType(empty.Index, types.OCIImageIndex))
	if err != nil {
		return err
	}
	// containerd reads the image's name from the first annotation, others from the
	// second.
	names := map[string]string{"io.containerd.image.name": b.name, "org.opencontainers.image.ref.name": b.name}
	if err := path.AppendIndex(index, layout.WithAnnotations(names)); err != nil {
		return err
	}
	return writeTar(file, dir)
}

// image returns the image of the files in root.
func (b *build) image(root, arch string) (v1.Image, error) {
	var files bytes.Buffer
	if err := tarTree(&files, root, b.created); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(files.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.Append(image, mutate.Addendum{
		Layer: layer, History: v1.History{CreatedBy: "programs, static", Created: v1.Time{Time: b.created}},
	})
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", arch, v1.Time{Time: b.created}
	// The same as in the Dockerfile.
	config.Config = v1.Config{
		User: "0", Entrypoint: []string{"/manifold-agent"}, Cmd: []string{"serve"},
		Labels: map[string]string{
			"org.opencontainers.image.title":       "manifold",
			"org.opencontainers.image.description": "CNI meta-plugin: several networks per pod, each on the device the kubelet allocated",
			"org.opencontainers.image.licenses":    "Apache-2.0",
			"org.opencontainers.image.version":     b.release,
			"org.opencontainers.image.revision":    b.revision,
		},
	}
	return mutate.ConfigFile(image, config)
}

// writeTar writes the files of dir into an archive under a temporary name, then renames
// it.
func writeTar(file, dir string) (err error) {
	f, err := os.Create(file + ".new")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // already renamed if all went well
	// The image tells when it was made; the archive around it does not.
	if err := errors.Join(tarTree(f, dir, time.Unix(0, 0)), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

// tarTree writes the files below dir in the order of their names, all owned by root and
// with the time at.
func tarTree(out io.Writer, dir string, at time.Time) error {
	w := tar.NewWriter(out)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: at})
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		mode := int64(0o644)
		if info.Mode()&0o100 != 0 {
			mode = 0o755
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content)), ModTime: at}); err != nil {
			return err
		}
		_, err = w.Write(content)
		return err
	})
	return errors.Join(err, w.Close())
}
