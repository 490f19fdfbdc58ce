package cluster

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// BoxImage is the image of every container and of the sandboxes. It holds one static
// program, see package box.
const BoxImage = "lab.example/box:1"

// writeBoxImage writes the image as `docker save` does: there is no registry to pull it
// from.
func writeBoxImage(path, program string) (err error) {
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	layer, err := tarOf(file{"box", content})
	if err != nil {
		return err
	}
	config, err1 := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{"Entrypoint": []string{"/box"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	manifest, err2 := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": []string{BoxImage}, "Layers": []string{"layer.tar"}}})
	archive, err3 := tarOf(file{"manifest.json", manifest}, file{"config.json", config}, file{"layer.tar", layer})
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	return os.WriteFile(path, archive, 0o600)
}

type file struct {
	name    string
	content []byte
}

func tarOf(files ...file) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o755, Size: int64(len(f.content)), Typeflag: tar.TypeReg}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}
