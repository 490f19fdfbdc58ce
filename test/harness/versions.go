package harness

// Versions of third-party programs. Each is built from a module at or below
// test/toolchain, which requires the same version and holds the sums.
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

	prometheusVersion = "v0.316.0" // of the module: Prometheus 3.16
)

// Lines of Kubernetes of which a node's kubelet can be: that of the control plane,
// and one whose kubelet has no Pods API.
const (
	NewestKubelet = "1.37"
	OlderKubelet  = "1.34"
)

// kubelets are the programs, by line.
var kubelets = map[string]tool{
	NewestKubelet: kubernetes("kubelet", "kubernetes", kubernetesVersion),
	OlderKubelet:  kubernetes("kubelet", "kubernetes-1.34", olderKubeletVersion),
}
