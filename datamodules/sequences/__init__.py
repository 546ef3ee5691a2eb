"""Episodes of many steps for networks with a memory: maps, recall, sorting, questions about stories."""
