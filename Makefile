# Manifold. Plain "make" prints this help.

RELEASE := $(shell git describe --tags --always --dirty 2>/dev/null || echo unreleased)
BUILD   := CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.release=$(RELEASE)"

# The image that "make image" builds: its full name and its architectures.
IMAGE := docker.io/manifold-cni/manifold:$(RELEASE)
ARCH  := amd64,arm64

# Packages with benchmarks. test/bench is a separate program.
BENCHED = $$(grep -rl --include='*_test.go' '^func Benchmark' . | xargs -n1 dirname | sort -u)

.DEFAULT_GOAL := help
.PHONY: help build krew image deploy demo test check bench scale conformance golden clean test-apiserver test-cluster cluster-shell test-node test-sriov sriov-shell

help: ## print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build all programs, static and stripped, into bin/
	$(BUILD) -o bin/manifold ./cmd/manifold
	$(BUILD) -o bin/manifold-agent ./cmd/manifold-agent
	$(BUILD) -o bin/manifold-webhook ./cmd/manifold-webhook
	$(BUILD) -o bin/kubectl-manifold ./cmd/kubectl-manifold

krew: ## pack kubectl-manifold for krew into bin/krew/: archives, and the manifest that names them; URL is where the archives will be
	go run ./test/krew/pack -release $(RELEASE) -url "$(URL)"

image: ## build the image into bin/manifold-image.tar, an OCI archive, without a container builder
	go build -C deploy/image -o $(CURDIR)/bin/image .
	bin/image archive -release $(RELEASE) -revision $$(git rev-parse HEAD) -created $$(git log -1 --format=%ct) \
	  -name $(IMAGE) -arch $(ARCH) bin/manifold-image.tar

deploy: ## regenerate the kustomize bases from the chart
	go run ./test/manifests/generate

demo: ## show the main job: a pod gets its networks and gives them back
	go run ./test/demo

test: ## run all tests: no cluster, no special hardware, no root where user namespaces are allowed
	go test -race -timeout 30m $(TESTFLAGS) ./...

check: ## vet, format, lint, module file, golden files and house rules
	go vet ./...
	go vet -tags killpoints ./...
	@unformatted=$$(gofmt -l .) && test -z "$$unformatted" || { echo "gofmt -w these: $$unformatted"; exit 1; }
	go mod tidy -diff
	linter=$$(go run ./test/harness/cmd/toolchain golangci-lint) && "$$linter" run ./...
	go test -count=1 ./internal/house

bench: ## measure against the floor in the same run, with results in bin/bench.json, then run the packages' benchmarks
	mkdir -p bin
	go run ./test/bench -json bin/bench.json
	go test -run '^$$' -bench . -benchmem $(BENCHED)

scale: ## run the agents of many nodes against one API server; see docs/scale.md
	go run ./test/scale

conformance: ## run the tests of the standards' clauses and print which clauses are proven
	go run ./test/conformance

test-apiserver: ## run the tests that need a real API server; the first run builds it, which takes some minutes
	go vet -tags apiserver ./test/...
	go test -race -count=1 -timeout 20m -tags apiserver -run RealAPI ./test/e2e ./test/admission ./test/kubectl
	go run ./test/bench -real=false -pods 2 -levels 1,2 -restart 4 -idle 1s -held 4 -definitions 4 -soak 40 -elsewhere 50
	go run ./test/scale -nodes 2,4 -definitions 20 -pods 1 -idle 1s

test-cluster: ## run the tests on a real node, as root; the first run builds the node's programs, which takes a quarter of an hour
	go vet -tags clusterlab ./test/cluster/...
	go test -v -count=1 -timeout 40m -tags clusterlab ./test/cluster

cluster-shell: ## open a shell on that node, with kubectl
	go run ./test/cluster/shell

test-node: ## run the tests on a node with real SR-IOV functions, in a virtual machine: no root, no KVM; builds what test-cluster does
	go vet -tags nodelab ./test/cluster/...
	go test -v -count=1 -timeout 40m -tags nodelab ./test/cluster

test-sriov: ## run the checks on real SR-IOV functions in a virtual machine: no root, no KVM
	go vet -tags sriovlab ./test/sriovlab/...
	go run ./test/sriovlab

sriov-shell: ## open a shell in that virtual machine
	go run ./test/sriovlab -shell

golden: ## regenerate the golden files
	go test -count=1 ./internal/house -update

clean: ## remove bin/
	rm -rf bin
