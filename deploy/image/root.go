package main

import (
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/CycloneDX/cyclonedx-go"
)

// programs are the packages of the image's programs.
var programs = []string{"./cmd/manifold", "./cmd/manifold-agent", "./cmd/manifold-webhook"}

// bomFile is the bill of materials of the programs.
const bomFile = "manifold.cdx.json"

// root builds the image's files for one architecture into dir. Every file gets the
// commit's time rather than the build's, because an image builder copies the times of
// files.
func (b *build) root(dir, arch string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, p := range programs {
		// -buildvcs=false keeps the state of the checkout out of the programs.
		cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.release="+b.release,
			"-o", filepath.Join(dir, filepath.Base(p)), p)
		// Settings for the processor in the builder's environment stay out of them too.
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOAMD64=v1", "GOARM64=v8.0", "GOEXPERIMENT=")
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("build %s for %s: %w", p, arch, err)
		}
	}
	if err := b.writeBOM(dir); err != nil {
		return err
	}
	files := []string{bomFile}
	for _, p := range programs {
		files = append(files, filepath.Base(p))
	}
	for _, name := range files {
		if err := os.Chtimes(filepath.Join(dir, name), b.created, b.created); err != nil {
			return err
		}
	}
	return nil
}

// writeBOM writes the bill of materials in CycloneDX: the modules that the programs in
// dir are linked from, as the programs themselves record.
func (b *build) writeBOM(dir string) (err error) {
	bom := cyclonedx.NewBOM()
	bom.Metadata = &cyclonedx.Metadata{
		Component: &cyclonedx.Component{Type: cyclonedx.ComponentTypeContainer, Name: "manifold", Version: b.release, BOMRef: "manifold"},
	}
	if b.created.Unix() != 0 {
		bom.Metadata.Timestamp = b.created.Format("2006-01-02T15:04:05Z")
	}
	modules := map[string]cyclonedx.Component{}
	var dependencies []cyclonedx.Dependency
	for _, p := range programs {
		name := filepath.Base(p)
		info, err := buildinfo.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		refs := []string{golang("std", strings.TrimPrefix(info.GoVersion, "go"), modules)}
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			refs = append(refs, golang(m.Path, m.Version, modules))
		}
		modules[name] = cyclonedx.Component{Type: cyclonedx.ComponentTypeApplication, Name: name, Version: b.release, BOMRef: name}
		dependencies = append(dependencies, cyclonedx.Dependency{Ref: name, Dependencies: &refs})
	}
	var components []cyclonedx.Component
	for _, c := range modules {
		components = append(components, c)
	}
	slices.SortFunc(components, func(a, b cyclonedx.Component) int { return strings.Compare(a.BOMRef, b.BOMRef) })
	bom.Components, bom.Dependencies = &components, &dependencies
	f, err := os.Create(filepath.Join(dir, bomFile))
	if err != nil {
		return err
	}
	if err := cyclonedx.NewBOMEncoder(f, cyclonedx.BOMFileFormatJSON).SetPretty(true).Encode(bom); err != nil {
		return fmt.Errorf("%s: %w", bomFile, err)
	}
	return f.Close()
}

// golang adds a module to modules and returns its reference.
func golang(path, version string, modules map[string]cyclonedx.Component) string {
	ref := "pkg:golang/" + path + "@" + version
	modules[ref] = cyclonedx.Component{Type: cyclonedx.ComponentTypeLibrary, Name: path, Version: version, PackageURL: ref, BOMRef: ref}
	return ref
}
