// Package cluster runs a Kubernetes cluster of one node, with Manifold installed as a
// user would install it, and tests it: every call of the plugin comes from the kubelet,
// through the container runtime.
//
// etcd, kube-apiserver, kube-controller-manager, kube-scheduler, containerd, runc and
// the kubelet are the real ones, built once per version into the user's cache (package
// harness). The node's default network is a bridge; the labs' device plugin advertises
// its devices. There are two kinds of nodes:
//
//   - A set of namespaces, see [Enter]: it needs root and leaves nothing behind. Its
//     devices are virtual network devices shown as subfunctions of a PCI function.
//   - A guest of package vm with the VFs of two PFs on two NUMA nodes, see
//     [EnterGuest]: it can lose its power, and is some ten times slower. The control
//     plane runs on this machine's loopback.
//
// The node in namespaces is for tests with many pods, the guest for tests that look
// deep. The build tag of a test file says which node the file is for.
//
//	make test-cluster                # tests of the node in namespaces, tag clusterlab
//	KUBELET=1.34 make test-cluster   # with a kubelet that has no Pods API
//	OUTAGES=long go test -tags clusterlab -timeout 40m ./test/cluster -run TestOutages -v
//	make cluster-shell               # the same cluster, and a shell with kubectl
//	make test-node                   # tests of the node in a guest, tag nodelab
//
// # Pitfalls
//
// What a node needs on a machine like a CI runner, where the error messages do not say
// it:
//
//   - Without the capability SYS_RESOURCE no process may lower its OOM score, so no
//     container starts: set containerd's restrict_oom_score_adj.
//   - With cgroups of version 1 the kubelet refuses to start (failCgroupV1). In a
//     cgroup that is not the root the kubelet cannot enforce limits on the node's own
//     cgroup (enforceNodeAllocatable).
//   - The kubelet accepts no loopback address as the node's, so the node has an
//     interface of its own.
//   - There is no kube-proxy: the API server's service address is on loopback, where a
//     forwarder listens.
//   - A kubelet that finds no runtime when it starts exits, and nothing here restarts
//     it.
//   - A restarted kubelet refuses pods with devices for good (UnexpectedAdmissionError)
//     until the device plugin registers again. After a boot this includes pods that ran
//     before.
package cluster
