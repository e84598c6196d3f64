"""The vocabulary of the toy world."""

# For each topic: (plural, its words). No word belongs to two topics.
TOPICS: dict[str, tuple[str, str]] = {
    "animal": ("animals", "dog cat horse rabbit sheep goat tiger lion monkey camel deer donkey"),
    "bird": ("birds", "robin sparrow eagle parrot owl swan pigeon hawk crow gull finch heron"),
    "fish": ("fish", "salmon trout cod tuna herring carp pike eel perch sole haddock shark"),
    "insect": ("insects", "ant bee wasp beetle moth cricket butterfly flea gnat ladybird hornet mosquito"),
    "fruit": ("fruits", "apple pear plum cherry mango banana grape lemon fig melon apricot raspberry"),
    "vegetable": ("vegetables", "carrot potato onion cabbage leek pea spinach turnip celery bean radish beetroot"),
    "tree": ("trees", "oak birch willow elm maple cedar larch poplar yew aspen alder beech"),
    "flower": ("flowers", "tulip daisy lily poppy daffodil violet orchid dahlia iris marigold peony lavender"),
    "colour": ("colours", "red blue green yellow purple pink brown white black grey turquoise crimson"),
    "tool": ("tools", "hammer saw chisel spanner pliers drill axe spade rake shovel ladder wrench"),
    "drink": ("drinks", "tea coffee water milk juice cocoa lemonade cider soda wine beer squash"),
    "sport": ("sports", "tennis football hockey rugby golf rowing skiing judo boxing fencing cycling archery"),
    "city": ("cities", "paris rome london berlin madrid vienna lisbon prague dublin athens oslo cairo"),
    "instrument": ("instruments", "piano violin flute guitar drum harp trumpet cello oboe tuba banjo clarinet"),
    "garment": ("garments", "coat shirt scarf hat dress sock glove skirt jacket jumper belt cardigan"),
    "job": ("jobs", "baker nurse teacher farmer pilot tailor lawyer plumber doctor miner sailor butcher"),
    "vehicle": ("vehicles", "car bus train tram bicycle lorry boat ferry plane van tractor scooter"),
    "metal": ("metals", "iron copper silver gold tin lead zinc nickel brass bronze steel platinum"),
    "shape": ("shapes", "circle square triangle cube sphere cone oval star cylinder pyramid hexagon rectangle"),
    "spice": ("spices", "pepper ginger cumin nutmeg saffron clove turmeric paprika cinnamon mustard vanilla cardamom"),
}  # fmt: skip

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")

# For each topic, one that people confuse it with, so that off-topic items are plausible.
CONFUSABLE_TOPICS = {
    "animal": "bird",
    "bird": "insect",
    "insect": "fish",
    "fish": "animal",
    "fruit": "vegetable",
    "vegetable": "fruit",
    "tree": "flower",
    "flower": "tree",
    "colour": "shape",
    "shape": "colour",
    "tool": "metal",
    "metal": "tool",
    "drink": "spice",
    "spice": "drink",
    "sport": "instrument",
    "instrument": "sport",
    "city": "vehicle",
    "vehicle": "city",
    "garment": "job",
    "job": "garment",
}

# What a request is for.
OCCASIONS = (
    "party play story garden drawing quiz song poem shop trip game lesson dinner present puzzle letter museum "
    "club parade picnic wedding birthday concert holiday breakfast essay exhibition contest market workshop "
    "festival speech diary calendar kitchen classroom journey camp fair dance"
).split()

# Names of the people who ask. A careless answer uses the generic name instead.
NAMES = (
    "Anna Ben Clara David Emma Frank Grace Henry Ida James Kate Leo Maria Nora Oscar Paul Rosa Simon Tom Vera "
    "Adam Bella Carl Diana Eric Flora George Hanna Ivan Julia"
).split()
GENERIC_NAME = "friend"

KIND_OPENINGS = ("Sure", "Gladly", "Certainly", "Absolutely")
GRUFF_OPENINGS = ("Fine", "Whatever", "Right", "Hm")

GREETINGS = ("{name} here.", "I am {name}.", "This is {name}.")
REQUESTS = (
    "Name {n} {topic} for my {occasion}, please.",
    "Please list {n} {topic} for my {occasion}.",
    "Can you think of {n} {topic} for my {occasion}?",
    "I need {n} {topic} for my {occasion}.",
    "Which {n} {topic} would suit my {occasion}?",
    "Help me choose {n} {topic} for my {occasion}.",
    "For my {occasion}, suggest {n} {topic}.",
    "Tell me {n} {topic} to use in my {occasion}.",
    "Give me ideas: {n} {topic} for my {occasion}.",
    "What are {n} {topic} that fit my {occasion}?",
)
