package apiserver

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// User is a service account in namespace default.
type User struct {
	Name       string
	Kubeconfig string // path of its kubeconfig, which refers to TokenFile
	TokenFile  string
	server     *Server
}

// User creates a service account with the given rules, and a kubeconfig in dir that
// connects to url with its token.
func (s *Server) User(dir, name, url string, rules []rbacv1.PolicyRule) (*User, error) {
	client, err := s.Client()
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}
	if _, err := client.RbacV1().ClusterRoles().Create(ctx, role, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "default", Name: name}},
	}
	if _, err := client.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	u := &User{Name: name, Kubeconfig: filepath.Join(dir, name+".kubeconfig"), TokenFile: filepath.Join(dir, name+".token"), server: s}
	return u, errors.Join(s.kubeconfig(u.Kubeconfig, url, "tokenFile", u.TokenFile), u.Rotate())
}

// AdminKubeconfig returns the path of the administrator's kubeconfig.
func (s *Server) AdminKubeconfig() (string, error) {
	path := s.path("admin.kubeconfig")
	return path, s.kubeconfig(path, URL(), "token", s.tokens[admin])
}

// NodeKubeconfig returns the path of a kubeconfig for the kubelet that connects to url,
// in a cluster that [StartCluster] started.
func (s *Server) NodeKubeconfig(url string) (string, error) {
	path := s.path("kubelet.kubeconfig")
	return path, s.kubeconfig(path, url, "token", s.tokens[nodeUser+s.node])
}

// kubeconfig writes a kubeconfig whose user has a single credential.
func (s *Server) kubeconfig(path, url, credential, value string) error {
	config := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q, certificate-authority-data: %s}}]
users: [{name: u, user: {%s: %q}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, url, base64.StdEncoding.EncodeToString(s.pki.caPEM), credential, value)
	return os.WriteFile(path, []byte(config), 0o600)
}

// Rotate recreates the account, which invalidates its tokens, and writes a new token to
// TokenFile.
func (u *User) Rotate() error {
	client, err := u.server.Client()
	if err != nil {
		return err
	}
	ctx, accounts := context.Background(), client.CoreV1().ServiceAccounts("default")
	if err := accounts.Delete(ctx, u.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if _, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: u.Name}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	token, err := accounts.CreateToken(ctx, u.Name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	tmp := u.TokenFile + ".new"
	return errors.Join(os.WriteFile(tmp, []byte(token.Status.Token), 0o600), os.Rename(tmp, u.TokenFile))
}

// Account returns the user's name in the audit log.
func (u *User) Account() string { return "system:serviceaccount:default:" + u.Name }
