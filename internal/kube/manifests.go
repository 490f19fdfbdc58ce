package kube

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	yamlv2 "go.yaml.in/yaml/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/manifold-cni/manifold/netattach"
)

// Limits of a manifest directory: a stray backup or log in it must not fill the agent's
// memory.
const (
	maxManifestFiles = 4096     // files that are read
	maxManifestFile  = 1 << 20  // bytes of one file, and of one document expanded
	maxManifestBytes = 32 << 20 // bytes of all files
	maxManifestDocs  = 1024     // documents in one file, items of lists included

	// mtimeGrain is how long another write to a file may leave its modification time
	// unchanged: the kernel's clock for it ticks every few milliseconds.
	mtimeGrain = 50 * time.Millisecond
)

// manifestDir reads the objects of one kind from a directory of manifests and keeps the
// parsed result until a file changes.
type manifestDir[T any] struct {
	dir string
	// collect stores obj in into if it is of the wanted kind, and ignores it otherwise.
	collect func(obj runtime.Object, into *manifestSet[T]) error

	mu    sync.Mutex
	stamp []fileStamp // state of the files that set was parsed from; nil to read again
	set   *manifestSet[T]
}

// manifestSet is the content of a directory.
type manifestSet[T any] struct {
	objects  map[string]*T // by namespace/name
	problems []error       // each names a file
}

// fileStamp changes when the file changes.
type fileStamp struct {
	name         string
	size         int64
	inode        uint64
	mtime, ctime int64 // nanoseconds
	problem      string
}

// load returns the directory's present content. An unreadable directory is
// ErrUnavailable; an unreadable file is only a problem.
func (m *manifestDir[T]) load() (*manifestSet[T], error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	root, err := os.OpenRoot(m.dir)
	if err != nil {
		return nil, fmt.Errorf("manifests: %w: %w", ErrUnavailable, err)
	}
	defer func() { _ = root.Close() }() // only read from
	now := time.Now()
	stamp, err := stampFiles(root)
	if err != nil {
		return nil, fmt.Errorf("manifests %s: %w: %w", m.dir, ErrUnavailable, err)
	}
	if m.set != nil && m.stamp != nil && slices.Equal(stamp, m.stamp) {
		return m.set, nil
	}
	m.set = m.read(root, stamp)
	m.stamp = stamp
	for _, s := range stamp {
		if time.Unix(0, max(s.mtime, s.ctime)).After(now.Add(-mtimeGrain)) {
			m.stamp = nil
		}
	}
	return m.set, nil
}

// isManifest reports whether a file of that name is read. Hidden files are an editor's,
// or the "..data" of a mounted ConfigMap.
func isManifest(name string) bool {
	if name[0] == '.' {
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// stampFiles lists the manifest files in order of name. Symbolic links are followed
// inside the directory only.
func stampFiles(root *os.Root) ([]fileStamp, error) {
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return nil, err
	}
	stamps := make([]fileStamp, 0, len(entries))
	for _, e := range entries {
		if !isManifest(e.Name()) {
			continue
		}
		s := fileStamp{name: e.Name()}
		info, err := root.Stat(e.Name())
		if err != nil {
			s.problem = err.Error()
		} else {
			s.fill(info)
		}
		stamps = append(stamps, s)
	}
	return stamps, nil
}

func (s *fileStamp) fill(info fs.FileInfo) {
	s.size, s.mtime = info.Size(), info.ModTime().UnixNano()
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode, s.ctime = st.Ino, st.Ctim.Nano()
	}
	switch {
	case !info.Mode().IsRegular():
		s.problem = "not a regular file"
	case s.size > maxManifestFile:
		s.problem = fmt.Sprintf("%d bytes, at most %d are read", s.size, maxManifestFile)
	}
}

// read parses every file of stamp.
func (m *manifestDir[T]) read(root *os.Root, stamp []fileStamp) *manifestSet[T] {
	set := &manifestSet[T]{objects: map[string]*T{}}
	codec := manifestCodec()
	files, bytes := 0, int64(0)
	for _, s := range stamp {
		path := filepath.Join(m.dir, s.name)
		if s.problem != "" {
			set.problems = append(set.problems, fmt.Errorf("manifest %s: %s", path, s.problem))
			continue
		}
		if files, bytes = files+1, bytes+s.size; files > maxManifestFiles || bytes > maxManifestBytes {
			set.problems = append(set.problems, fmt.Errorf("manifest %s and those after it are not read: over %d files or %d bytes",
				path, maxManifestFiles, maxManifestBytes))
			break
		}
		data, err := readManifestFile(root, s.name)
		if err != nil {
			set.problems = append(set.problems, fmt.Errorf("manifest %s: %w", path, err))
			continue
		}
		for _, err := range m.parse(data, codec, set) {
			set.problems = append(set.problems, fmt.Errorf("manifest %s: %w", path, err))
		}
	}
	return set
}

// readManifestFile reads a file that was regular and small when it was stamped, and may
// be something else by now: opening a FIFO must not block.
func readManifestFile(root *os.Root, name string) ([]byte, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read from
	data, err := io.ReadAll(io.LimitReader(f, maxManifestFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxManifestFile {
		return nil, fmt.Errorf("more than %d bytes", maxManifestFile)
	}
	return data, nil
}

// parse adds the objects of one file to set. A broken document does not hide the next
// one.
func (m *manifestDir[T]) parse(data []byte, codec runtime.Decoder, set *manifestSet[T]) []error {
	var problems []error
	docs := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for n := 1; ; n++ {
		doc, err := docs.Read()
		switch {
		case errors.Is(err, io.EOF):
			return problems
		case err != nil:
			return append(problems, err)
		case n > maxManifestDocs:
			return append(problems, fmt.Errorf("more than %d documents", maxManifestDocs))
		}
		if err := m.parseDoc(doc, codec, set); err != nil {
			problems = append(problems, fmt.Errorf("document %d: %w", n, err))
		}
	}
}

func (m *manifestDir[T]) parseDoc(doc []byte, codec runtime.Decoder, set *manifestSet[T]) error {
	js, err := toJSON(doc)
	if err != nil || js == nil {
		return err
	}
	obj, err := decodeManifest(js, codec)
	if err != nil || obj == nil {
		return err
	}
	items, err := listItems(obj, codec)
	if err != nil {
		return err
	}
	var errs []error
	for _, item := range items {
		errs = append(errs, m.collect(item, set))
	}
	return errors.Join(errs...)
}

// toJSON converts one YAML document, which may be JSON; nil for an empty one. The
// conversion expands aliases, so the expanded size is measured first: a kilobyte can
// stand for gigabytes.
func toJSON(doc []byte) ([]byte, error) {
	var tree any
	if err := yamlv2.Unmarshal(doc, &tree); err != nil {
		return nil, err
	}
	if tree == nil {
		return nil, nil
	}
	if expandedSize(tree, maxManifestFile) > maxManifestFile {
		return nil, fmt.Errorf("expands to more than %d bytes", maxManifestFile)
	}
	return sigsyaml.YAMLToJSON(doc)
}

// expandedSize estimates the size of a decoded tree. It stops soon after limit.
func expandedSize(tree any, limit int) int {
	size := 1
	switch v := tree.(type) {
	case string:
		size += len(v)
	case []any:
		for i := 0; i < len(v) && size <= limit; i++ {
			size += expandedSize(v[i], limit-size)
		}
	case map[any]any:
		for k, e := range v {
			if size > limit {
				break
			}
			size += expandedSize(k, limit-size) + expandedSize(e, limit-size)
		}
	}
	return size
}

// decodeManifest decodes one object. It returns nil for a kind that the codec does not
// know, which a directory of manifests may well hold.
func decodeManifest(js []byte, codec runtime.Decoder) (runtime.Object, error) {
	obj, _, err := codec.Decode(js, nil, nil)
	if runtime.IsNotRegisteredError(err) {
		return nil, nil
	}
	return obj, err
}

// listItems returns obj, or its items if it is a list.
func listItems(obj runtime.Object, codec runtime.Decoder) ([]runtime.Object, error) {
	var items []runtime.Object
	switch list := obj.(type) {
	case *corev1.List:
		for i, raw := range list.Items {
			item, err := decodeManifest(raw.Raw, codec)
			if err != nil {
				return nil, fmt.Errorf("item %d: %w", i+1, err)
			}
			items = append(items, item)
		}
	case *corev1.PodList:
		for i := range list.Items {
			items = append(items, &list.Items[i])
		}
	case *netattach.DefinitionList:
		for i := range list.Items {
			items = append(items, &list.Items[i])
		}
	default:
		items = append(items, obj)
	}
	if len(items) > maxManifestDocs {
		return nil, fmt.Errorf("%d items, at most %d are read", len(items), maxManifestDocs)
	}
	return items, nil
}

// manifestCodec decodes the kinds that are read from manifests.
func manifestCodec() runtime.Decoder {
	scheme := runtime.NewScheme()
	// Registration fails only for conflicting kinds, and these do not conflict.
	_ = errors.Join(addCore(scheme), netattach.AddToScheme(scheme))
	return serializer.NewCodecFactory(scheme).UniversalDeserializer()
}

// add stores an object. The first one of a name wins, in order of file name.
func (s *manifestSet[T]) add(kind, namespace, name string, obj *T) error {
	if err := checkNames(kind, namespace, name); err != nil {
		return err
	}
	key := namespace + "/" + name
	if _, ok := s.objects[key]; ok {
		return fmt.Errorf("%s %s: defined a second time, ignored", kind, key)
	}
	s.objects[key] = obj
	return nil
}

// problemText lists unreadable files for the text of "not found": the object may be in
// one of them.
func (s *manifestSet[T]) problemText() string {
	switch n := len(s.problems); n {
	case 0:
		return ""
	case 1:
		return " (unreadable: " + s.problems[0].Error() + ")"
	default:
		return fmt.Sprintf(" (unreadable: %v, and %d more)", s.problems[0], n-1)
	}
}
