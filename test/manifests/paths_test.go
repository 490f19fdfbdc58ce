package manifests_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/test/manifests"
)

// moved are chart values that move every directory away from its default.
var moved = []string{
	"--set", "host.cniBinDir=/m/bin,host.cniConfDir=/m/conf,host.cniConfName=05-m.conflist,host.stateDir=/m/state,host.kubeletDir=/m/kubelet,host.deviceInfoDir=/m/info",
	"--set", "dra=true", "--set", "host.networkDirs={/m/nets,/m/more},clusterNetwork=/m/nets/10-a.conflist",
	"--set", "config.confDir=/m/more,config.defaultNetworks={team/net,/m/nets/sub}",
}

// A path means the same to the runtime, the plugin and the agent: each host
// directory is mounted at its own path. Each path that a container gets as an
// argument, or that the agent takes by default, is inside one of its mounts, which
// is writable where it must be.
func TestPathsAreMountedWhereTheyAreUsed(t *testing.T) {
	all := values()
	all["moved"] = moved
	for name, args := range all {
		t.Run(name, func(t *testing.T) {
			objects := render(t, args...)
			conf := agentConfig(t, objects)
			for _, ds := range []string{"DaemonSet/manifold", "DaemonSet/manifold-uninstall"} {
				pod := as[appsv1.DaemonSet](t, objects, ds).Spec.Template.Spec
				mountedAtTheirOwnPaths(t, &pod)
				for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
					used := told(&c)
					if c.Name == "agent" {
						maps.Copy(used, served(t, objects, conf))
					}
					for path, write := range used {
						mounted(t, &c, path, write)
					}
				}
			}
		})
	}
}

// The kubelet keeps the checkpoint of devices with the sockets of device plugins, whose
// directory does not move with its root directory; all else does.
func TestCheckpointStaysWhereDevicePluginsAre(t *testing.T) {
	for name, args := range map[string][]string{"default": nil, "moved": moved, "k0s": values()["k0s"], "microk8s": values()["microk8s"]} {
		conf := agentConfig(t, render(t, args...))
		if want := "/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint"; conf.Checkpoint != want {
			t.Errorf("%s: the agent reads %s, want %s", name, conf.Checkpoint, want)
		}
		if conf.PodResources != conf.KubeletDir+"/pod-resources/kubelet.sock" {
			t.Errorf("%s: the agent asks %s", name, conf.PodResources)
		}
	}
}

// agentConfig returns the agent's configuration, with defaults filled in.
func agentConfig(t *testing.T, objects map[string]*unstructured.Unstructured) *configfile.Agent {
	t.Helper()
	file := filepath.Join(t.TempDir(), "agent.json")
	if err := os.WriteFile(file, []byte(as[corev1.ConfigMap](t, objects, "ConfigMap/manifold").Data["agent.json"]), 0o600); err != nil {
		t.Fatal(err)
	}
	conf, err := configfile.ReadAgent(file)
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

// told returns the paths among a container's arguments and whether the container
// writes to them. It writes to all but its configuration and the file that names a
// network.
func told(c *corev1.Container) map[string]bool {
	out := map[string]bool{}
	for _, a := range c.Args {
		if flag, value, _ := strings.Cut(a, "="); strings.HasPrefix(value, "/") {
			out[value] = !strings.HasSuffix(flag, "config") && flag != "--cluster-network"
		}
	}
	return out
}

// served returns the paths that a running agent uses, and whether it writes to
// them.
func served(t *testing.T, objects map[string]*unstructured.Unstructured, conf *configfile.Agent) map[string]bool {
	t.Helper()
	var plugin struct {
		DeviceInfoDir, ConfDir string
		DefaultNetworks        []string
	}
	if err := json.Unmarshal([]byte(as[corev1.ConfigMap](t, objects, "ConfigMap/manifold").Data["plugin.json"]), &plugin); err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{conf.Socket: true, conf.Snapshot: true, conf.CNIDir: true, conf.CNIConfig: true, plugin.DeviceInfoDir: false}
	for _, network := range append(plugin.DefaultNetworks, plugin.ConfDir) {
		if strings.HasPrefix(network, "/") {
			out[network] = false
		}
	}
	for _, source := range []string{conf.PodResources, conf.Checkpoint, conf.PodsAPI, conf.ClaimCheckpoint, conf.DeviceMetadata} {
		if source != "" { // disabled
			out[source] = false
		}
	}
	return out
}

// mountedAtTheirOwnPaths fails for a host directory that a container sees at
// another path, and for a volume that no container sees.
func mountedAtTheirOwnPaths(t *testing.T, pod *corev1.PodSpec) {
	t.Helper()
	for _, v := range pod.Volumes {
		seen := false
		for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
			for _, m := range c.VolumeMounts {
				if m.Name != v.Name {
					continue
				}
				seen = true
				if v.HostPath != nil && v.HostPath.Path != m.MountPath {
					t.Errorf("container %s sees %s of the host as %s", c.Name, v.HostPath.Path, m.MountPath)
				}
			}
		}
		if !seen {
			t.Errorf("no container sees volume %s", v.Name)
		}
	}
}

// mounted fails unless path is inside one of the container's mounts, a writable one
// if write is set.
func mounted(t *testing.T, c *corev1.Container, path string, write bool) {
	t.Helper()
	for _, m := range c.VolumeMounts {
		if path == m.MountPath || strings.HasPrefix(path, m.MountPath+"/") {
			if write && m.ReadOnly {
				t.Errorf("container %s cannot write to %s", c.Name, path)
			}
			return
		}
	}
	t.Errorf("container %s uses %s, which it does not see", c.Name, path)
}

// Each directory that a preset sets is mounted, and every pod that uses host
// directories has the preset's SELinux type.
func TestPresetsAreUsed(t *testing.T) {
	for _, preset := range manifests.Presets {
		raw, err := os.ReadFile(filepath.Join(root, manifests.Preset(preset)))
		if err != nil {
			t.Fatal(err)
		}
		var set struct {
			Host        map[string]string
			SELinuxType string `json:"seLinuxType"`
		}
		if err := yaml.Unmarshal(raw, &set); err != nil || len(set.Host) == 0 {
			t.Fatalf("%s: %v: %s", preset, err, raw)
		}
		objects := render(t, values()[preset]...)
		var directories []string
		for _, v := range as[appsv1.DaemonSet](t, objects, "DaemonSet/manifold").Spec.Template.Spec.Volumes {
			if v.HostPath != nil {
				directories = append(directories, v.HostPath.Path)
			}
		}
		for key, dir := range set.Host {
			if key == "kubeletDir" { // only parts of it are mounted
				dir += "/pod-resources"
			}
			if !slices.Contains(directories, dir) {
				t.Errorf("%s: no volume mounts %s of the host: %s", preset, key, dir)
			}
		}
		for _, name := range []string{"manifold", "manifold-uninstall"} {
			options, got := as[appsv1.DaemonSet](t, objects, "DaemonSet/"+name).Spec.Template.Spec.SecurityContext.SELinuxOptions, ""
			if options != nil {
				got = options.Type
			}
			if got != set.SELinuxType {
				t.Errorf("%s: the SELinux type of DaemonSet %s is %q, want %q", preset, name, got, set.SELinuxType)
			}
		}
	}
}

// An installation that set OpenShift's permission before the SELinux type was a
// value of its own keeps that type.
func TestPlatformsPermissionImpliesTheSELinuxType(t *testing.T) {
	for set, want := range map[string]string{
		"openshift.securityContextConstraints=true":                              "spc_t",
		"openshift.securityContextConstraints=true,seLinuxType=container_init_t": "container_init_t",
	} {
		options := as[appsv1.DaemonSet](t, render(t, "--set", set), "DaemonSet/manifold").Spec.Template.Spec.SecurityContext.SELinuxOptions
		if options == nil || options.Type != want {
			t.Errorf("%s: %+v, want %s", set, options, want)
		}
	}
}

// OpenShift's default constraints admit only UIDs of the namespace's range, and the
// webhook's is not among them: without a permission of its own no replica would start,
// and the API server would refuse every pod that selects networks.
func TestPlatformAdmitsTheWebhook(t *testing.T) {
	const name = "manifold-webhook-scc"
	for _, certificates := range []string{"own", "cert-manager"} {
		objects := render(t, append(values()["openshift"], "--set", "webhook.enabled=true,webhook.certificates="+certificates)...)
		account := as[appsv1.Deployment](t, objects, "Deployment/manifold-webhook").Spec.Template.Spec.ServiceAccountName
		rules := as[rbacv1.Role](t, objects, "Role/"+name).Rules
		want := []rbacv1.PolicyRule{{
			APIGroups: []string{"security.openshift.io"}, Resources: []string{"securitycontextconstraints"}, ResourceNames: []string{"nonroot-v2"}, Verbs: []string{"use"},
		}}
		if !reflect.DeepEqual(rules, want) {
			t.Errorf("%s: %+v", certificates, rules)
		}
		binding := as[rbacv1.RoleBinding](t, objects, "RoleBinding/"+name)
		if binding.RoleRef.Name != name || len(binding.Subjects) != 1 || binding.Subjects[0].Name != account {
			t.Errorf("%s: %+v", certificates, binding)
		}
	}
	for _, args := range [][]string{values()["openshift"], values()["admission"]} {
		if render(t, args...)["Role/"+name] != nil {
			t.Errorf("%q: Role %s exists", args, name)
		}
	}
}
