// Package wire defines how the host and its guest talk: gob-encoded messages in both
// directions over one virtio serial port. Package vm is the host's end and package
// guest the guest's.
//
// The guest speaks first: Ready, or Failed and nothing more. Then the host starts
// commands under numbers that it chooses; the streams and exits of all running commands
// are interleaved. The guest answers PowerOff by powering off.
package wire

// PortName is the name of the serial port, as the guest finds it in
// /sys/class/virtio-ports.
const PortName = "manifold"

// Paths in the guest.
const (
	// Setup is the file that holds the guest's [Configuration] as JSON.
	Setup = "/etc/guest.json"
	// Modules is the directory of the kernel modules to load.
	Modules = "/lib/modules"
	// Disk is the directory where the guest's disk, if any, is mounted.
	Disk = "/disk"
)

// Configuration tells the guest what to set up before it says that it is ready.
type Configuration struct {
	// Modules are the modules to load, in this order: the files NAME.ko in the
	// directory of modules.
	Modules []string `json:"modules"`
	// Disk says that there is a disk to mount.
	Disk bool `json:"disk"`
	// Root says that the disk becomes the root file system.
	Root bool `json:"root"`
	// Uplink is the name to give the virtio network device, Address its address and
	// Gateway the gateway of the default route; all empty if there is no such device.
	Uplink  string `json:"uplink"`
	Address string `json:"address"`
	Gateway string `json:"gateway"`
	// VFs is the number of VFs to enable on every PF.
	VFs int `json:"vfs"`
}

// Kind is the type of a message.
type Kind uint8

// Kinds of messages; each comment ends with the fields in use.
const (
	Ready  Kind = iota + 1 // to the host: everything is set up. Text: the boot ID
	Failed                 // to the host: the guest could not be set up and powers off. Text: why

	Start    // to the guest: run a command. ID, Command
	Stdin    // to the guest: input of a command, empty at its end. ID, Data
	Signal   // to the guest: a signal to a command's process group. ID, Number
	PowerOff // to the guest

	Stdout // to the host: output of a command. ID, Data
	Stderr // to the host: ID, Data
	Exit   // to the host: a command has exited; its last message. ID, Number: status, or 128 + signal if killed; Text: why it could not start
)

// Message is one message over the port.
type Message struct {
	Kind    Kind
	ID      int
	Command *Command
	Data    []byte
	Number  int
	Text    string
}

// Command is a program to run as root in the guest.
type Command struct {
	// Args are the program's absolute path and its arguments.
	Args []string
	// Env is added to PATH, HOME and TERM, as K=V.
	Env []string
	// Dir is the working directory; empty means /.
	Dir string
	// Terminal is the size of the terminal that the command gets instead of three
	// streams; nil for none. All output of such a command is Stdout.
	Terminal *Size
}

// Size is a terminal's size in characters.
type Size struct{ Rows, Columns uint16 }
