"""A training over nodes on Flower (extra `flower`): its app, its server, its deployment as processes."""
