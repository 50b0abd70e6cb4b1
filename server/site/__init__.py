"""The coordinator's own processes: certificates, gateway, nodes, supervision."""
