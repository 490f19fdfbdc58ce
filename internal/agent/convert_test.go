package agent

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

// thin is a file as the runtime reads it, with what people write into it.
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

func TestConvert(t *testing.T) {
	tests := map[string]struct {
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
			[]string{`type: "multus" becomes "manifold"`, "kubeconfig: it is apiServer", "Note1: dropped", `cniVersion: "0.3.1" is kept`},
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
			`{}`, "multus-cni-network 0.3.1", []string{"clusterNetwork: it is not set; 'manifold-agent install' pins"},
		},
		"a list": {
			`{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"multus-shim","clusterNetwork":"flannel"},{"type":"tuning"}]}`,
			`{"type":"manifold","clusterNetwork":"flannel","cniDir":"/var/lib/cni/multus","confDir":"/etc/cni/multus/net.d"}`, `{}`, "n 1.1.0", []string{`type: "multus-shim"`},
		},
	}
	for name, tc := range tests {
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

// validOnceInstalled: the default network is all that install completes.
func validOnceInstalled(t *testing.T, c *Conversion, want string) {
	t.Helper()
	complete := string(c.Plugin)
	if !strings.Contains(want, "clusterNetwork") {
		complete = strings.Replace(complete, `"type": "manifold"`, `"type": "manifold", "clusterNetwork": "x"`, 1)
	}
	if f := ValidateConfig([]byte(complete)); len(f) > 0 {
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
		`[]`:                                   "cannot unmarshal",
		`{"type":"multus","delegates":"none"}`: `"delegates"`,
		`{"type":"multus"}`:                    "clusterNetwork",
		`{"type":"multus"`:                     "unexpected end",
		`{"plugins":[null]}`:                   "clusterNetwork",
	} {
		if _, err := Convert([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", in, err, want)
		}
	}
}

func TestValidateConfigNamesLineAndKey(t *testing.T) {
	in := `{
  "name": "m", "cniVersion": "1.1.0",
  "plugins": [
    {"type": "portmap"},
    {
      "type": "manifold",
      "clusterNetwork": "flannel",
      "verify": "sometimes",
      "colour": {"verify": 1},

      "namespaceIsolation": "yes"
    }
  ]
}`
	var got []string
	for _, f := range ValidateConfig([]byte(in)) {
		line, text, _ := strings.Cut(f.String(), " ")
		kind, rest, _ := strings.Cut(text, ": ")
		key, _, _ := strings.Cut(rest, ":")
		got = append(got, line+kind+" "+key)
	}
	want := []string{"8:error verify", "9:warning colour", "11:error namespaceIsolation"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	for in, want := range map[string]string{
		"{\n\"type\": \"manifold\",\n}": "3: error: ", `{"type":"manifold"}`: "1: error: ", `{"type":"bridge"}`: "1: error: it has no plugin",
	} {
		if got := ValidateConfig([]byte(in)); len(got) != 1 || !strings.HasPrefix(got[0].String(), want) {
			t.Errorf("%s: %v, want %s", in, got, want)
		}
	}
}
