//! The Deployment and the Service that tests and the demo send their traffic to.

/// `replicas` pods of `sheave-traffic serve`, spread evenly over the nodes, and a Service of a type in front: TCP port 80
/// and UDP port 53, both to 8080.
pub fn manifest(name: &str, replicas: u16, service_type: &str) -> String {
    format!("{}---\n{}", deployment(name, replicas), service(name, name, service_type))
}

pub fn deployment(name: &str, replicas: u16) -> String {
    format!(
        r#"apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 10
      # A node that lost power and came back has its pods again; nothing moves meanwhile.
      tolerations:
      - {{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute}}
      - {{key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute}}
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: ScheduleAnyway
        labelSelector: {{matchLabels: {{app: {name}}}}}
      containers:
      - name: serve
        image: sheave-traffic:lab
        imagePullPolicy: Never
        args: [serve, --tcp=8080, --udp=8080]
        env:
        - {{name: POD_NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
        - {{name: NODE_NAME, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}
        readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
"#
    )
}

pub fn service(name: &str, app: &str, service_type: &str) -> String {
    format!(
        r"apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  type: {service_type}
  selector: {{app: {app}}}
  ports:
  - {{name: tcp, protocol: TCP, port: 80, targetPort: 8080}}
  - {{name: udp, protocol: UDP, port: 53, targetPort: 8080}}
"
    )
}
