// Package wire is how the machine at hand and its guest talk: gob-encoded
// messages in both directions over one virtio serial port. Package vm is the
// host's end and guestinit the guest's.
//
// The guest speaks first: Ready, or Failed and no more. Then the host starts
// commands under numbers of its choice; streams and ends of all running commands
// are interleaved. PowerOff is answered by the virtual machine ending.
package wire

// PortName is the name of the serial port, as the guest finds it in
// /sys/class/virtio-ports.
const PortName = "manifold"

// Image paths in the guest.
const (
	// Setup is the file that holds the guest's [Configuration], in JSON.
	Setup = "/etc/guest.json"
	// Modules is the directory of the kernel modules to load.
	Modules = "/lib/modules"
	// Disk is the directory where the guest's disk is mounted, where it has one.
	Disk = "/disk"
)

// Configuration is what the guest sets up before it says that it is ready.
type Configuration struct {
	// Modules are names of files NAME.ko below the directory of modules, in the
	// order to load them.
	Modules []string `json:"modules"`
	// Disk says that there is a disk to be mounted.
	Disk bool `json:"disk"`
	// Root says that the disk becomes the root file system.
	Root bool `json:"root"`
	// Uplink is the name that the virtio network device is to have, with an address
	// and the gateway of the default route; empty where there is none.
	Uplink  string `json:"uplink"`
	Address string `json:"address"`
	Gateway string `json:"gateway"`
	// VFs is the number of VFs to enable on every PF.
	VFs int `json:"vfs"`
}

// Kind says what a message is.
type Kind uint8

// Kinds of messages; the comments name the fields that each has.
const (
	Ready  Kind = iota + 1 // to the host: all is set up. Text: the boot ID
	Failed                 // to the host: the guest could not be set up and powers off. Text: why

	Start    // to the guest: run a command. ID, Command
	Stdin    // to the guest: input of a command, none for its end. ID, Data
	Signal   // to the guest: a signal to a command's process group. ID, Number
	PowerOff // to the guest

	Stdout // to the host: output of a command. ID, Data
	Stderr // to the host: ID, Data
	Exit   // to the host: a command has ended, its last message. ID, Number: status, 128 + signal for a killed one; Text: why it could not be started
)

// Message is what goes over the port.
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
	// Env is added to PATH and HOME, as K=V.
	Env []string
	// Dir is the working directory; empty means /.
	Dir string
	// Terminal is the size of the terminal that the command is to have instead of
	// three streams; nil for none. All output of such a command is Stdout.
	Terminal *Size
}

// Size is a terminal's size in characters.
type Size struct{ Rows, Columns uint16 }
