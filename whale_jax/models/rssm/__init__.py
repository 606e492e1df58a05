"""DreamerV3's world model: a recurrent state-space model (RSSM), trained as one component."""
