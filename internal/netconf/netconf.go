// Package netconf turns the input of the container runtime (the CNI environment and the
// plugin configuration on stdin) into one validated [Invocation], and finds network
// configurations on the node's disk.
//
// The configuration accepts those keys of Multus that have the same meaning here, and
// Manifold's own; see [Conf]. A key of the wrong type is refused with its name and the
// expected type. An unknown key becomes a warning, so that a configuration written for
// another release still starts.
package netconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
)

// Conf is the plugin's configuration. The tags give the key, its default, its form (see
// forms), its meaning, and whether an empty string stands for the default, as it does
// for every enum. The reference page is generated from them. Durations are Go durations
// in a string, "30s"; directories are absolute paths.
type Conf struct {
	CNIVersion string          `json:"cniVersion" form:"version" default:"0.1.0" doc:"CNI version that the runtime speaks, 0.1.0 to 1.1.0"`
	Name       string          `json:"name" form:"name" doc:"name of this network"`
	Type       string          `json:"type" doc:"name of the program, manifold"`
	Capability map[string]bool `json:"capabilities" doc:"runtime capabilities that are passed on to the cluster default network, for example portMappings" multus:"passes on only portMappings and bandwidth"`

	ClusterNetwork string            `json:"clusterNetwork" form:"network" doc:"cluster default network, see [names of networks](#names-of-networks); the runtime names its interface" multus:"takes namespace/name for a path; falls back from a broken definition to a file of its name"`
	Delegates      []json.RawMessage `json:"delegates" form:"configs" doc:"cluster default network inline; has no effect if clusterNetwork is set; further elements are attached to every pod"`
	DefaultNets    []string          `json:"defaultNetworks" form:"networks" doc:"networks attached to every pod outside systemNamespaces, each named as in clusterNetwork, optionally followed by @interface" multus:"knows neither namespace/name nor @interface; attaches none of them if delegates is set; falls back from a broken definition to a file of its name"`

	SystemNamespaces   []string `json:"systemNamespaces" form:"namespaces" default:"[\"kube-system\"]" doc:"namespaces whose pods get only the cluster default network, none of defaultNetworks"`
	MultusNamespace    string   `json:"multusNamespace" form:"namespace" default:"kube-system" doc:"namespace of definitions that clusterNetwork, defaultNetworks and the annotation v1.multus-cni.io/default-network name without a namespace"`
	NamespaceIsolation bool     `json:"namespaceIsolation" doc:"refuse definitions of namespaces other than the pod's, in both annotations; networks that the configuration names are not the pod's choice and are not isolated" multus:"does not isolate the annotation v1.multus-cni.io/default-network: where pods use it, list multusNamespace in globalNamespaces"`
	GlobalNamespaces   string   `json:"globalNamespaces" form:"namespaces" default:"default" empty:"default" doc:"comma-separated namespaces whose definitions every pod may use despite namespaceIsolation; default is one of them only if the list names it or is empty"`

	ConfDir        string     `json:"confDir" form:"path" default:"/etc/cni/multus/net.d" doc:"directory of the node's network configurations"`
	CNIDir         string     `json:"cniDir" form:"path" default:"/var/lib/cni/multus" doc:"directory of the journal and of libcni's results" multus:"keeps other files in it, see [switching](switching.md)"`
	BinDir         string     `json:"binDir" form:"path" default:"/opt/cni/bin" doc:"directory searched for delegates before those of CNI_PATH"`
	AgentSocket    string     `json:"agentSocket" form:"socket" default:"/run/manifold/agent.sock" doc:"unix socket of the agent" multus:"own"`
	AgentProgram   string     `json:"agentProgram" form:"path" default:"/opt/cni/bin/manifold-agent" doc:"program run as 'plan' when no agent answers" multus:"own"`
	AgentConfig    string     `json:"agentConfig" form:"path" default:"/etc/cni/net.d/manifold.d/agent.json" doc:"the agent's configuration file, for agentProgram" multus:"own"`
	SysRoot        string     `json:"sysRoot" form:"path" default:"/" doc:"directory that contains sys/, to look up functions and their PFs" multus:"own"`
	DeviceInfo     string     `json:"deviceInfoDir" form:"path" default:"/var/run/k8s.cni.cncf.io/devinfo" doc:"directory of the device-information files, with the subdirectories dp/ and cni/" multus:"own"`
	Verify         string     `json:"verify" default:"enforce" enum:"enforce warn off" doc:"what to do when an interface differs from plan and result: undo and refuse, only report, or do not compare" multus:"own: Multus does not compare"`
	Carrier        string     `json:"carrier" default:"warn" enum:"warn require ignore" doc:"what to do when the interface of a device has no carrier: only report, treat as a difference in the sense of verify, or do not check; a definition's annotation manifold.dev/carrier takes precedence" multus:"own: Multus does not check"`
	CarrierTime    Duration   `json:"carrierTimeout" default:"3s" doc:"longest wait for the carriers of a pod's interfaces that are up" multus:"own"`
	RestoreDevices bool       `json:"restoreDevices" default:"true" doc:"restore a VF after DEL to its state before ADD: name, MAC, MTU, and its properties on the PF" multus:"own"`
	DeviceOrder    string     `json:"deviceOrder" default:"address" enum:"address plugin" doc:"order of a container's devices: ascending, or as the device plugin's answer lists them" multus:"own"`
	BadAnnot       string     `json:"invalidAnnotation" default:"fail" enum:"fail ignore" doc:"what to do with an annotation of the pod that cannot be read: refuse the pod, or ignore that annotation and warn in the log and in the pod's Event; then no network of k8s.v1.cni.cncf.io/networks is attached, and the configuration's default network replaces that of v1.multus-cni.io/default-network. A readable annotation that cannot be served, for example because a definition does not exist, is refused in either case" multus:"own: Multus refuses most, and ignores some fields"`
	Status         string     `json:"status" default:"sync" enum:"sync async" doc:"when to publish network-status: before ADD returns, or soon after, which starts pods sooner but loses the status if the agent dies in between or the API server is unavailable for more than 20 s" multus:"own: Multus publishes before"`
	Readiness      string     `json:"readinessindicatorfile" form:"file" doc:"file that exists once the default network is ready: ADD waits for it as long as for a plan, STATUS fails without it" multus:"ADD waits 45 s; STATUS does not check"`
	AuxChain       string     `json:"auxiliaryCNIChainName" form:"chain" doc:"directory beside the default network's file, or in confDir, whose *.conf files are plugins that run after those of the default network" multus:"runs them as a separate network that does not see the default network's result"`
	RetryDelete    bool       `json:"retryDeleteOnError" doc:"no effect: a failed DEL is always kept and tried again" multus:"false forgets the attachments of a failed DEL"`
	Kubeconfig     string     `json:"kubeconfig" doc:"no effect: the agent accesses the API server, by the key apiServer of its own configuration" multus:"the plugin itself accesses the API server"`
	LogFile        string     `json:"logFile" form:"file" doc:"absolute path of a log file, rotated by logOptions"`
	LogLevel       string     `json:"logLevel" default:"warning" enum:"panic error warning verbose debug" doc:"what is logged: nothing; failed verbs; also what was found wrong; also every verb; also every attachment" multus:"its default is panic; it has no warning"`
	LogFormat      string     `json:"logFormat" default:"text" enum:"text json" doc:"format of the log lines" multus:"own"`
	LogToStderr    bool       `json:"logToStderr" default:"true" doc:"also log to the container runtime's log"`
	LogOptions     LogOptions `json:"logOptions" form:"rotation" doc:"rotation of logFile: maxSize in MB, maxAge in days, maxBackups in files, compress"`
	ReleaseOnly    string     `json:"releaseOnly" form:"file" doc:"absolute path of a configuration that [uninstalling](uninstall.md) leaves behind, in which this plugin comes after the primary network's own: nothing is attached any more, DEL and GC release what was attached, and the file is removed with the last sandbox that has more than the default network" multus:"own"`
	DisableGC      bool       `json:"disableGC" doc:"answer GC without collecting anything, for runtimes that share this directory and know only their own sandboxes" multus:"own"`
	GCGrace        Duration   `json:"gcGrace" doc:"for a runtime that adds pods while it collects: GC spares a sandbox that the runtime does not name if its ADD ended within this time before GC began; it always spares one whose ADD ended since. The next GC collects it; a sandbox whose network namespace is gone is collected at once" multus:"own"`
	DelegateTime   Duration   `json:"delegateTimeout" default:"90s" doc:"longest run of one delegate chain before it is killed" multus:"own"`
	PlanTime       Duration   `json:"planTimeout" default:"60s" doc:"longest wait for a plan, and so for a slow API server; keep it below the time that the runtime waits for a sandbox, or nobody reports why the pod failed" multus:"own"`
	LockTime       Duration   `json:"lockTimeout" default:"60s" doc:"longest wait for another operation on the same sandbox, or for a delegate that outlived a killed one" multus:"own"`
}

// StatusAsync is the value of the key status that lets ADD return before network-status
// is published.
const StatusAsync = "async"

// LogOptions say how the log file is rotated. 0 stands for 100 MB, for no age limit,
// and for all backups.
type LogOptions struct {
	MaxSize    int  `json:"maxSize"`
	MaxAge     int  `json:"maxAge"`
	MaxBackups int  `json:"maxBackups"`
	Compress   bool `json:"compress"`
}

// Duration is a time.Duration written as a string, for example "30s".
type Duration time.Duration

// UnmarshalJSON reads a positive Go duration of at most one hour from a string.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return err
	}
	if v <= 0 || v > time.Hour {
		return fmt.Errorf("%q is not between 0 and 1h", s)
	}
	*d = Duration(v)
	return nil
}

// Invocation is one call of the plugin, decoded and validated.
type Invocation struct {
	ContainerID string   // CNI_CONTAINERID; empty for GC and STATUS
	NetNS       string   // CNI_NETNS; may be empty or gone for DEL
	IfName      string   // CNI_IFNAME
	Path        []string // where delegates are searched: binDir, then CNI_PATH
	Args        [][2]string
	Pod         plan.Pod
	Conf        Conf
	Raw         json.RawMessage // the configuration as on stdin
	ID          string          // of the call, in the logs of plugin and agent
	// RuntimeConfig is the runtime's own capability data. It is for the cluster default
	// network only (multi-network specification 7.5).
	RuntimeConfig map[string]json.RawMessage
	// NamesValid reports that the runtime named the live attachments, even if there are
	// none.
	NamesValid bool
	// Valid are the live attachments (verb GC): cni.dev/valid-attachments, or the key's
	// former name cni.dev/attachments.
	Valid    []Attachment
	Warnings []string

	lenient bool // wrong values are warnings
}

// Attachment is an element of cni.dev/valid-attachments.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

// Request returns the invocation as a request to the planner.
func (inv *Invocation) Request() plan.Request {
	return plan.Request{
		Version: plan.Version, PodNamespace: inv.Pod.Namespace, PodName: inv.Pod.Name, PodUID: inv.Pod.UID,
		ContainerID: inv.ContainerID, NetNS: inv.NetNS, IfName: inv.IfName, Args: inv.Args, Config: inv.Raw, ID: inv.ID,
	}
}

// Parse validates what package skel read from the environment and stdin.
func Parse(a *skel.CmdArgs) (*Invocation, error) { return parse(a, false) }

// ParseLeniently is Parse for the verb DEL, which needs little of the configuration. A
// wrong value leaves its key at the default and becomes a warning, so that no mistake
// in the file makes pods undeletable.
func ParseLeniently(a *skel.CmdArgs) (*Invocation, error) { return parse(a, true) }

func parse(a *skel.CmdArgs, lenient bool) (*Invocation, error) {
	inv := &Invocation{lenient: lenient, ContainerID: a.ContainerID, NetNS: a.Netns, IfName: a.IfName, Raw: a.StdinData}
	args, err := parseArgs(a.Args)
	if err != nil {
		return nil, err
	}
	inv.Args = args
	inv.Pod = podOf(args)
	if err := inv.decode(a.StdinData); err != nil {
		return nil, cnierr.Annotate(err, cnierr.Subject{Pod: inv.Pod.String()})
	}
	inv.Path = append(inv.Path, inv.Conf.BinDir)
	for _, dir := range filepath.SplitList(a.Path) {
		if dir != "" && dir != inv.Conf.BinDir {
			inv.Path = append(inv.Path, dir)
		}
	}
	return inv, nil
}

// FromRequest rebuilds the invocation on the planner's side of the socket.
func FromRequest(r plan.Request) (*Invocation, error) {
	inv := &Invocation{
		ContainerID: r.ContainerID, NetNS: r.NetNS, IfName: r.IfName, Args: r.Args, Raw: r.Config, ID: r.ID,
		Pod: plan.Pod{Namespace: r.PodNamespace, Name: r.PodName, UID: r.PodUID},
	}
	return inv, inv.decode(r.Config)
}

// decode reads the configuration into inv.
func (inv *Invocation) decode(stdin []byte) error {
	const op = "read configuration"
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(stdin, &keys); err != nil {
		return cnierr.New(op, cnierr.Decode, "%w", err)
	}
	conf, err := defaults()
	if err != nil {
		return cnierr.New(op, cnierr.InvalidConfig, "defaults: %w", err)
	}
	inv.Conf = *conf // shares its lists and maps; setting a key replaces them
	if err := inv.decodeKeys(keys); err != nil {
		return err
	}
	for _, x := range inv.extra() {
		raw, ok := keys[x.key]
		if !ok {
			continue
		}
		inv.NamesValid = inv.NamesValid || x.into == any(&inv.Valid)
		if err := inv.tolerate(x.decode(raw)); err != nil {
			return err
		}
	}
	return inv.tolerate(inv.Conf.validate())
}

// extra returns the keys that the runtime adds to the configuration.
func (inv *Invocation) extra() []extraKey {
	return []extraKey{{"runtimeConfig", &inv.RuntimeConfig}, {"cni.dev/attachments", &inv.Valid}, {"cni.dev/valid-attachments", &inv.Valid}}
}

type extraKey struct {
	key  string
	into any
}

func (x extraKey) decode(raw json.RawMessage) error {
	if err := json.Unmarshal(raw, x.into); err != nil {
		return cnierr.New(fmt.Sprintf("read configuration: key %q", x.key), cnierr.Decode, "%w", err)
	}
	return nil
}

// tolerate turns an error into a warning if the invocation is lenient.
func (inv *Invocation) tolerate(err error) error {
	if err == nil || !inv.lenient {
		return err
	}
	inv.Warnings = append(inv.Warnings, err.Error())
	return nil
}

// Validate checks a configuration before it is written, as Parse will when the runtime
// calls.
func Validate(keys map[string]any) error {
	raw, err := json.Marshal(keys)
	if err != nil {
		return cnierr.New("read configuration", cnierr.InvalidConfig, "%w", err)
	}
	return new(Invocation).decode(raw)
}

// passed are the keys of the CNI specification and of libcni that are not part of
// Manifold's configuration. They cause no warning.
var passed = map[string]bool{
	"args": true, "prevResult": true, "runtimeConfig": true, "dns": true, "ipam": true, "ipMasq": true,
	"disableCheck": true, "cniVersions": true, "cni.dev/valid-attachments": true, "cni.dev/attachments": true,
}

// decodeKeys sets the known keys in the configuration and adds a warning for each
// unknown key, sorted.
func (inv *Invocation) decodeKeys(keys map[string]json.RawMessage) error {
	v := reflect.ValueOf(&inv.Conf).Elem()
	known := map[string]bool{}
	for i := range v.NumField() {
		key := v.Type().Field(i).Tag.Get("json")
		known[key] = true
		raw, ok := keys[key]
		if !ok || bytes.Equal(raw, []byte("null")) {
			continue
		}
		value, err := decodeKey(v.Type().Field(i), raw)
		if err == nil {
			v.Field(i).Set(value)
		} else if err := inv.tolerate(err); err != nil {
			return err
		}
	}
	var warnings []string
	for key := range keys {
		if !known[key] && !passed[key] {
			warnings = append(warnings, fmt.Sprintf("configuration key %q is unknown and has no effect", key))
		}
	}
	sort.Strings(warnings)
	inv.Warnings = append(inv.Warnings, warnings...)
	return nil
}

// decodeKey decodes the value of one key. The error's operation names the key, its
// cause does not.
func decodeKey(field reflect.StructField, raw json.RawMessage) (reflect.Value, error) {
	key := field.Tag.Get("json")
	wrong := func(err error) *cnierr.Error {
		return cnierr.New(fmt.Sprintf("read configuration: key %q", key), cnierr.InvalidConfig, "%w", err)
	}
	value := reflect.New(field.Type)
	if err := json.Unmarshal(raw, value.Interface()); err != nil {
		return value, wrong(Mistyped(err, field.Type))
	}
	value = value.Elem()
	enum := field.Tag.Get("enum")
	// Multus reads an empty logLevel and globalNamespaces this way.
	if (enum != "" || field.Tag.Get("empty") == "default") && value.String() == "" {
		value.SetString(field.Tag.Get("default"))
	}
	if enum != "" {
		word := strings.ToLower(value.String()) // Multus reads its logLevel in any case, too
		value.SetString(word)
		if !slices.Contains(strings.Fields(enum), word) {
			return value, wrong(fmt.Errorf("%.64q is unknown", word)).WithFix("choose one of: %s", enum)
		}
	}
	if check := forms[field.Tag.Get("form")]; check != nil {
		if err := check(value); err != nil {
			return value, wrong(err)
		}
	}
	return value, nil
}

// Mistyped rewords an error of decoding JSON: what was given, and what the key or a
// field of its object takes.
func Mistyped(err error, takes reflect.Type) error {
	var typed *json.UnmarshalTypeError
	if !errors.As(err, &typed) {
		return fmt.Errorf("%w; give it %s", err, typeName(takes))
	}
	given, _, _ := strings.Cut(typed.Value, " ") // the number follows a number's type
	article := "a"
	if strings.ContainsAny(given[:1], "ao") {
		article = "an"
	}
	if typed.Field == "" {
		return fmt.Errorf("%s %s is given; it takes %s", article, given, typeName(takes))
	}
	return &ValueError{Index: -1, Field: typed.Field, Err: fmt.Errorf("%s %s is given; it takes %s", article, given, typeName(typed.Type))}
}

// CheckKey validates one key of a configuration by itself, as the plugin will when the
// runtime calls. The error's operation names the key, its cause does not. known is
// false for a key that is neither Manifold's nor the CNI specification's.
func CheckKey(key string, raw json.RawMessage) (known bool, err error) {
	if field, ok := fieldOf(key); ok {
		if !bytes.Equal(raw, []byte("null")) {
			_, err = decodeKey(field, raw)
		}
		return true, err
	}
	for _, x := range new(Invocation).extra() {
		if x.key == key {
			return true, x.decode(raw)
		}
	}
	return passed[key], nil
}

// fieldOf returns the field of a key.
func fieldOf(key string) (reflect.StructField, bool) {
	t := reflect.TypeFor[Conf]()
	for i := range t.NumField() {
		if t.Field(i).Tag.Get("json") == key {
			return t.Field(i), true
		}
	}
	return reflect.StructField{}, false
}

// KeyInAnyCase returns the key of Manifold that differs from key only in case, empty
// for none. Multus reads its keys in any case, Manifold only as its reference spells
// them.
func KeyInAnyCase(key string) string {
	t := reflect.TypeFor[Conf]()
	for i := range t.NumField() {
		if name := t.Field(i).Tag.Get("json"); name != key && strings.EqualFold(name, key) {
			return name
		}
	}
	return ""
}

// UnknownFields returns the fields of a key's object that have no effect, sorted.
func UnknownFields(key string, raw json.RawMessage) []string {
	var given map[string]json.RawMessage
	field, ok := fieldOf(key)
	if !ok || field.Type.Kind() != reflect.Struct || json.Unmarshal(raw, &given) != nil {
		return nil
	}
	var unknown []string
	for name := range given {
		if _, found := field.Type.FieldByNameFunc(func(of string) bool { return strings.EqualFold(of, name) }); !found {
			unknown = append(unknown, name)
		}
	}
	sort.Strings(unknown)
	return unknown
}

// defaults returns the configuration without any key set.
var defaults = sync.OnceValues(func() (*Conf, error) {
	conf := &Conf{}
	v := reflect.ValueOf(conf).Elem()
	for i := range v.NumField() {
		field := v.Type().Field(i)
		def, ok := field.Tag.Lookup("default")
		if !ok {
			continue
		}
		raw := []byte(def)
		if k := field.Type; k.Kind() == reflect.String || k == reflect.TypeFor[Duration]() {
			quoted, err := json.Marshal(def)
			if err != nil {
				return nil, err
			}
			raw = quoted
		}
		if err := json.Unmarshal(raw, v.Field(i).Addr().Interface()); err != nil {
			return nil, fmt.Errorf("%s: %w", field.Name, err)
		}
	}
	return conf, nil
})

// validate checks what depends on several keys.
func (c *Conf) validate() error {
	const op = "read configuration"
	if c.ClusterNetwork == "" && len(c.Delegates) == 0 {
		return cnierr.New(op, cnierr.InvalidConfig, "neither %q nor %q is set", "clusterNetwork", "delegates").
			WithFix("name the cluster default network in clusterNetwork")
	}
	return nil
}

// typeName says for people what a key must hold.
func typeName(t reflect.Type) string {
	if t == reflect.TypeFor[Duration]() {
		return `a duration such as "30s"`
	}
	switch t.Kind() {
	case reflect.Bool:
		return "a boolean"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.String {
			return "a list of strings"
		}
		return "a list of objects"
	case reflect.Map:
		return "an object of booleans"
	case reflect.Struct:
		return "an object"
	case reflect.Int:
		return "a whole number"
	default:
		return "a string"
	}
}

// parseArgs decodes CNI_ARGS, "K=V;K=V".
func parseArgs(s string) ([][2]string, error) {
	if s == "" {
		return nil, nil
	}
	var out [][2]string
	for _, pair := range strings.Split(s, ";") {
		k, v, ok := strings.Cut(pair, "=")
		if !ok || k == "" {
			return nil, cnierr.New("read environment", cnierr.InvalidEnvironment, "CNI_ARGS: %.64q is not KEY=VALUE", pair).
				WithFix("the runtime must separate KEY=VALUE pairs by semicolons")
		}
		out = append(out, [2]string{k, v})
	}
	return out, nil
}

// podOf returns the pod's identity from CNI_ARGS, as container runtimes pass it.
func podOf(args [][2]string) plan.Pod {
	var p plan.Pod
	for _, kv := range args {
		switch kv[0] {
		case "K8S_POD_NAMESPACE":
			p.Namespace = kv[1]
		case "K8S_POD_NAME":
			p.Name = kv[1]
		case "K8S_POD_UID":
			p.UID = kv[1]
		}
	}
	return p
}
