// Package cluster runs a Kubernetes cluster of one node, with Manifold on it as a
// user would install it, and tests it: every call of the plugin is the kubelet's,
// by way of the container runtime.
//
// etcd, kube-apiserver, kube-controller-manager, kube-scheduler, containerd, runc
// and the kubelet are the real ones, built once per version into the user's cache
// (package harness). The node's default network is a bridge; its devices are
// advertised by the labs' device plugin. There are two kinds of nodes:
//
//   - A set of namespaces, see [Enter]: it needs root, and leaves nothing behind. Its
//     devices are virtual network devices shown as subfunctions of a PCI function.
//   - A guest of package vm with the VFs of two PFs on two NUMA nodes, see
//     [EnterGuest]: it can lose its power, and is some ten times slower. The control
//     plane is on the loopback of the machine at hand.
//
// Many pods are for the one, deep checks for the other; which files of tests are
// for which, their build tags say.
//
//	make test-cluster                # tests of the node in namespaces, tag clusterlab
//	KUBELET=1.34 make test-cluster   # with a kubelet that has no Pods API
//	OUTAGES=long go test -tags clusterlab -timeout 40m ./test/cluster -run TestOutages -v
//	make cluster-shell               # the same cluster, and a shell with kubectl
//	make test-node                   # tests of the node in a guest, tag nodelab
//
// # Pitfalls
//
// What a node needs on a machine like a CI runner, and does not say:
//
//   - Without the capability SYS_RESOURCE no process may lower its OOM score, and
//     no container starts: containerd's restrict_oom_score_adj.
//   - With cgroups of version 1 the kubelet refuses to start (failCgroupV1), and
//     in a cgroup that is not the root it can enforce nothing on the node's
//     (enforceNodeAllocatable).
//   - The kubelet takes no loopback address for the node's, so the node has an
//     interface of its own.
//   - There is no kube-proxy: the API server's service address is on loopback, and
//     a forwarder listens there.
//   - A kubelet that finds no runtime when it starts ends, and nobody is here to
//     start it again.
//   - A kubelet just restarted refuses pods with devices, for good, until the
//     device plugin has registered again (UnexpectedAdmissionError); after a boot
//     also those that had run before.
package cluster
