package configfile

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

// thin is a file as the runtime reads it, with the keys that people write.
const thin = `{
  "cniVersion": "0.3.1",
  "name": "node-cni-network",
  "type": "multus",
  "kubeconfig": "/etc/cni/net.d/multus.d/multus.kubeconfig",
  "confDir": "/etc/cni/multus/net.d",
  "logFile": "/var/log/multus.log",
  "logLevel": "debug",
  "Note1": "a comment",
  "capabilities": {"portMappings": true},
  "clusterNetwork": "/etc/cni/net.d/10-flannel.conflist",
  "systemNamespaces": ["kube-system", "admin"]
}`

// thick is a daemon's file.
const thick = `{
  "chrootDir": "/hostroot",
  "confDir": "/hostroot/etc/cni/net.d",
  "binDir": "/var/lib/cni/bin",
  "readinessindicatorfile": "/host/run/multus/cni/net.d/10-ovn.conf",
  "clusterNetwork": "/host/run/multus/cni/net.d/10-ovn.conf",
  "multusConfigFile": "auto",
  "socketDir": "/host/run/multus/socket",
  "perNodeCertificate": {"enabled": true},
  "namespaceIsolation": true,
  "auxiliaryCNIChainName": "vendor-cni-chain"
}`

// conversions are configurations of Multus, with the results and the changes reported.
var conversions = map[string]struct {
	in            string
	plugin, agent string // as JSON
	list          string
	said          []string
}{
	"thin": {
		thin,
		`{"type":"manifold","cniDir":"/var/lib/cni/multus","confDir":"/etc/cni/multus/net.d","logFile":"/var/log/multus.log","logLevel":"debug","capabilities":{"portMappings":true},
			  "clusterNetwork":"/etc/cni/net.d/10-flannel.conflist","systemNamespaces":["kube-system","admin"]}`,
		`{"apiServer":"/etc/cni/net.d/multus.d/multus.kubeconfig"}`, "node-cni-network 0.3.1",
		[]string{`type: "multus" becomes "manifold"`, "kubeconfig: becomes apiServer", "Note1: dropped", `cniVersion: "0.3.1" is kept`},
	},
	"thick": {
		thick,
		`{"type":"manifold","cniDir":"/var/lib/cni/multus","confDir":"/etc/cni/net.d","binDir":"/var/lib/cni/bin","readinessindicatorfile":"/run/multus/cni/net.d/10-ovn.conf",
			  "clusterNetwork":"/run/multus/cni/net.d/10-ovn.conf","namespaceIsolation":true,"auxiliaryCNIChainName":"vendor-cni-chain"}`,
		`{}`, "multus-cni-network 1.1.0",
		[]string{"chrootDir: dropped", "multusConfigFile: dropped", "perNodeCertificate: dropped", "confDir: /hostroot/etc/cni/net.d is /etc/cni/net.d on the node"},
	},
	"stock daemon": {
		`{"chrootDir":"/hostroot","cniVersion":"0.3.1","logLevel":"Verbose","logToStderr":true,"cniConfigDir":"/host/etc/cni/net.d","multusAutoconfigDir":"/host/etc/cni/net.d",
			  "multusConfigFile":"auto","socketDir":"/host/run/multus/"}`,
		`{"type":"manifold","cniDir":"/var/lib/cni/multus","confDir":"/etc/cni/multus/net.d","logLevel":"Verbose","logToStderr":true}`,
		`{}`, "multus-cni-network 0.3.1", []string{"clusterNetwork: not set; 'manifold-agent install' pins"},
	},
	"daemon with a directory of its own": {
		`{"chrootDir":"/hostroot","cniVersion":"0.3.1","cniConfigDir":"/host/etc/cni/net.d","multusAutoconfigDir":"/host/run/multus/cni/net.d","multusConfigFile":"auto"}`,
		`{"type":"manifold","cniDir":"/var/lib/cni/multus","confDir":"/etc/cni/multus/net.d","clusterNetwork":"/run/multus/cni/net.d"}`,
		`{}`, "multus-cni-network 0.3.1", []string{
			"multusAutoconfigDir: /host/run/multus/cni/net.d is /run/multus/cni/net.d on the node", "multusAutoconfigDir: becomes clusterNetwork, the first configuration in /run/multus/cni/net.d",
		},
	},
	"default networks": {
		`{"type":"multus","ClusterNetwork":"flannel","LOGLEVEL":"debug","namespaceIsolation":true,"delegates":[{"type":"x"}],
			  "defaultNetworks":["storage","/host/etc/cni/multus/net.d/20-b.conf","/etc/cni/extra","team/net"]}`,
		`{"type":"manifold","cniDir":"/var/lib/cni/multus","confDir":"/etc/cni/multus/net.d","clusterNetwork":"flannel","logLevel":"debug","namespaceIsolation":true,
			  "defaultNetworks":["storage","/etc/cni/multus/net.d/20-b.conf","/etc/cni/extra","team/net"]}`,
		`{}`, "multus-cni-network 1.1.0", []string{
			"ClusterNetwork: becomes clusterNetwork", "LOGLEVEL: becomes logLevel", "delegates: dropped; no effect beside clusterNetwork",
			"defaultNetworks: /host/etc/cni/multus/net.d/20-b.conf is /etc/cni/multus/net.d/20-b.conf on the node", "defaultNetworks: team/net means the definition of that namespace",
			"namespaceIsolation: also applies to the pod annotation v1.multus-cni.io/default-network; list kube-system in globalNamespaces",
		},
	},
	"default networks beside delegates": {
		`{"type":"multus","delegates":[{"type":"x","name":"y"}],"defaultNetworks":["storage"]}`,
		`{"type":"manifold","cniDir":"/var/lib/cni/multus","confDir":"/etc/cni/multus/net.d","delegates":[{"type":"x","name":"y"}]}`,
		`{}`, "multus-cni-network 1.1.0", []string{"defaultNetworks: dropped; Multus ignores it beside delegates", "cniVersion: not set; becomes 1.1.0"},
	},
	"a list": {
		`{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"multus-shim","clusterNetwork":"flannel"},{"type":"tuning"}]}`,
		`{"type":"manifold","clusterNetwork":"flannel","cniDir":"/var/lib/cni/multus","confDir":"/etc/cni/multus/net.d"}`, `{}`, "n 1.1.0", []string{`type: "multus-shim"`},
	},
}

func TestConvert(t *testing.T) {
	for name, tc := range conversions {
		t.Run(name, func(t *testing.T) {
			c, err := Convert([]byte(tc.in))
			if err != nil {
				t.Fatal(err)
			}
			var list struct {
				Name, CNIVersion string
				Plugins          []json.RawMessage
			}
			if err := json.Unmarshal(c.Plugin, &list); err != nil {
				t.Fatal(err)
			}
			sameJSON(t, "plugin", string(list.Plugins[0]), tc.plugin)
			sameJSON(t, "agent", string(c.Agent), tc.agent)
			if got := list.Name + " " + list.CNIVersion; got != tc.list {
				t.Errorf("list %s, want %s", got, tc.list)
			}
			for _, s := range tc.said {
				if !strings.Contains(strings.Join(c.Changes, "\n"), s) {
					t.Errorf("not said: %s\n%s", s, strings.Join(c.Changes, "\n"))
				}
			}
			validOnceInstalled(t, c, tc.plugin)
		})
	}
}

// validOnceInstalled checks that the default network is all that install must add.
func validOnceInstalled(t *testing.T, c *Conversion, want string) {
	t.Helper()
	complete := string(c.Plugin)
	if !strings.Contains(want, "clusterNetwork") && !strings.Contains(want, "delegates") {
		complete = strings.Replace(complete, `"type": "manifold"`, `"type": "manifold", "clusterNetwork": "x"`, 1)
	}
	if f := ValidatePlugin([]byte(complete)); len(f) > 0 {
		t.Errorf("the conversion is not valid: %v", f)
	}
}

func sameJSON(t *testing.T, what, got, want string) {
	t.Helper()
	var g, w any
	if err := json.Unmarshal([]byte(got), &g); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(g, w) {
		t.Errorf("%s %s\nwant %s", what, got, want)
	}
}

func TestConvertRefuses(t *testing.T) {
	for in, want := range map[string]string{
		`{"type":"bridge"}`:                    "no plugin of type multus",
		`[]`:                                   "line 1: an array is given; it takes an object; ",
		`{"type":"multus","delegates":"none"}`: `"delegates"`,
		`{"type":"multus"}`:                    "clusterNetwork",
		`{"type":"multus","clusterNetwork":"a","defaultNetworks":["[{"]}`: `key "defaultNetworks": element 1`,
		`{"type":"multus"`:   "line 1: not valid JSON: unexpected end",
		`{"plugins":[null]}`: "clusterNetwork",
	} {
		if _, err := Convert([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", in, err, want)
		}
	}
}
