package harness

// Versions of third-party programs. Each is built from a module at or below
// test/toolchain, which requires the same version and holds the checksums.
const (
	pluginsModule  = "github.com/containernetworking/plugins"
	pluginsVersion = "v1.9.1"
	lintModule     = "github.com/golangci/golangci-lint/v2/cmd/golangci-lint"
	lintVersion    = "v2.15.0"

	kubernetesVersion   = "v1.37.2"
	olderKubeletVersion = "v1.34.4"
	etcdVersion         = "v3.7.3"

	containerdModule  = "github.com/containerd/containerd/v2"
	containerdVersion = "v2.4.2"
	runcVersion       = "v1.5.2"

	helmVersion      = "v4.3.1"
	kustomizeVersion = "v5.8.2"

	prometheusVersion = "v0.316.0" // the Go module's version of Prometheus 3.16
)

// Kubernetes release lines of a node's kubelet: the control plane's own, and one whose
// kubelet has no Pods API.
const (
	NewestKubelet = "1.37"
	OlderKubelet  = "1.34"
)

// kubelets holds the kubelets by release line.
var kubelets = map[string]tool{
	NewestKubelet: kubernetes("kubelet", "kubernetes", kubernetesVersion),
	OlderKubelet:  kubernetes("kubelet", "kubernetes-1.34", olderKubeletVersion),
}
