//! The messages of the CRI (`runtime.v1` of k8s.io/cri-api) that a kubelet sends for a pod's life, with the fields that the
//! tests set or read. Field numbers never change within v1; what is not named here is passed over.

use prost::Message;
use std::collections::HashMap;

macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field:meta])* $member:ident: $type:ty,)* })*) => {
        $($(#[$doc])* #[derive(Clone, PartialEq, Message)] pub struct $name { $($(#[$field])* pub $member: $type,)* })*
    };
}

messages! {
    Empty {}
    VersionRequest {}
    VersionResponse {
        #[prost(string, tag = 2)] runtime_name: String,
        #[prost(string, tag = 3)] runtime_version: String,
    }
    RunPodSandboxRequest {
        #[prost(message, optional, tag = 1)] config: Option<PodSandboxConfig>,
        /// Which of the configured OCI runtimes; empty: the default one.
        #[prost(string, tag = 2)] runtime_handler: String,
    }
    PodSandboxConfig {
        #[prost(message, optional, tag = 1)] metadata: Option<PodSandboxMetadata>,
        #[prost(string, tag = 2)] hostname: String,
        #[prost(string, tag = 3)] log_directory: String,
        #[prost(map = "string, string", tag = 6)] labels: HashMap<String, String>,
        #[prost(map = "string, string", tag = 7)] annotations: HashMap<String, String>,
        #[prost(message, optional, tag = 8)] linux: Option<LinuxPodSandboxConfig>,
    }
    PodSandboxMetadata {
        #[prost(string, tag = 1)] name: String,
        #[prost(string, tag = 2)] uid: String,
        #[prost(string, tag = 3)] namespace: String,
        #[prost(uint32, tag = 4)] attempt: u32,
    }
    LinuxPodSandboxConfig {
        #[prost(string, tag = 1)] cgroup_parent: String,
        #[prost(message, optional, tag = 2)] security_context: Option<LinuxSandboxSecurityContext>,
    }
    LinuxSandboxSecurityContext {
        #[prost(message, optional, tag = 1)] namespace_options: Option<NamespaceOption>,
    }
    NamespaceOption {
        /// 0: the pod's, 1: the container's own, 2: the node's.
        #[prost(int32, tag = 1)] network: i32,
        #[prost(int32, tag = 2)] pid: i32,
    }
    /// Of requests that name a pod, and of the answer to RunPodSandbox.
    PodId { #[prost(string, tag = 1)] pod_sandbox_id: String, }
    PodSandboxStatusResponse { #[prost(message, optional, tag = 1)] status: Option<PodSandboxStatus>, }
    PodSandboxStatus { #[prost(message, optional, tag = 5)] network: Option<PodSandboxNetworkStatus>, }
    PodSandboxNetworkStatus { #[prost(string, tag = 1)] ip: String, }
    CreateContainerRequest {
        #[prost(string, tag = 1)] pod_sandbox_id: String,
        #[prost(message, optional, tag = 2)] config: Option<ContainerConfig>,
        #[prost(message, optional, tag = 3)] sandbox_config: Option<PodSandboxConfig>,
    }
    ContainerConfig {
        #[prost(message, optional, tag = 1)] metadata: Option<ContainerMetadata>,
        #[prost(message, optional, tag = 2)] image: Option<ImageSpec>,
        #[prost(string, repeated, tag = 3)] command: Vec<String>,
        #[prost(string, repeated, tag = 4)] args: Vec<String>,
        #[prost(message, repeated, tag = 7)] mounts: Vec<Mount>,
        #[prost(map = "string, string", tag = 9)] labels: HashMap<String, String>,
        #[prost(map = "string, string", tag = 10)] annotations: HashMap<String, String>,
        #[prost(string, tag = 11)] log_path: String,
        #[prost(message, optional, tag = 15)] linux: Option<LinuxContainerConfig>,
    }
    ContainerMetadata {
        #[prost(string, tag = 1)] name: String,
        #[prost(uint32, tag = 2)] attempt: u32,
    }
    ImageSpec { #[prost(string, tag = 1)] image: String, }
    Mount {
        #[prost(string, tag = 1)] container_path: String,
        #[prost(string, tag = 2)] host_path: String,
        #[prost(bool, tag = 3)] readonly: bool,
    }
    LinuxContainerConfig {
        #[prost(message, optional, tag = 1)] resources: Option<LinuxContainerResources>,
        #[prost(message, optional, tag = 2)] security_context: Option<LinuxContainerSecurityContext>,
    }
    LinuxContainerResources {
        #[prost(int64, tag = 3)] cpu_shares: i64,
        #[prost(int64, tag = 4)] memory_limit_in_bytes: i64,
    }
    LinuxContainerSecurityContext {
        #[prost(message, optional, tag = 1)] capabilities: Option<Capability>,
        #[prost(message, optional, tag = 3)] namespace_options: Option<NamespaceOption>,
        #[prost(message, optional, tag = 5)] run_as_user: Option<Int64Value>,
        #[prost(bool, tag = 7)] readonly_rootfs: bool,
        #[prost(bool, tag = 11)] no_new_privs: bool,
        #[prost(message, optional, tag = 12)] run_as_group: Option<Int64Value>,
        /// Of /proc and /sys: hidden, and not to be written. Without them everything is shown.
        #[prost(string, repeated, tag = 13)] masked_paths: Vec<String>,
        #[prost(string, repeated, tag = 14)] readonly_paths: Vec<String>,
        #[prost(message, optional, tag = 15)] seccomp: Option<SecurityProfile>,
    }
    Capability {
        #[prost(string, repeated, tag = 1)] add_capabilities: Vec<String>,
        #[prost(string, repeated, tag = 2)] drop_capabilities: Vec<String>,
    }
    Int64Value { #[prost(int64, tag = 1)] value: i64, }
    SecurityProfile {
        /// 0: the runtime's own, 1: none, 2: a file.
        #[prost(int32, tag = 1)] profile_type: i32,
        #[prost(string, tag = 2)] localhost_ref: String,
    }
    /// Of requests that name a container, and of the answer to CreateContainer.
    ContainerId { #[prost(string, tag = 1)] container_id: String, }
    StopContainerRequest {
        #[prost(string, tag = 1)] container_id: String,
        /// Seconds.
        #[prost(int64, tag = 2)] timeout: i64,
    }
    ContainerStatusRequest {
        #[prost(string, tag = 1)] container_id: String,
        #[prost(bool, tag = 2)] verbose: bool,
    }
    ContainerStatusResponse {
        /// With `verbose`: `info` is JSON, and tells the pid.
        #[prost(map = "string, string", tag = 2)] info: HashMap<String, String>,
    }
    ExecSyncRequest {
        #[prost(string, tag = 1)] container_id: String,
        #[prost(string, repeated, tag = 2)] cmd: Vec<String>,
        /// Seconds; 0: none.
        #[prost(int64, tag = 3)] timeout: i64,
    }
    ExecSyncResponse {
        #[prost(bytes = "vec", tag = 2)] stderr: Vec<u8>,
        #[prost(int32, tag = 3)] exit_code: i32,
    }
}
